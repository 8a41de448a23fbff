#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

from graft.fragment import after

from nova.exception import NovaException
from nova.i18n import _


@after('', 'class ImageUnacceptable(Invalid):')
class SheepdogError(NovaException):
    msg_fmt = _("Sheepdog gateway %(gateway)s: '%(command)s' failed: "
                "%(reason)s")


@after('', 'class ImageUnacceptable(Invalid):')
class SheepdogVDINotFound(SheepdogError):
    msg_fmt = _("Sheepdog gateway %(gateway)s: '%(command)s' did not find "
                "the VDI or snapshot: %(reason)s")


@after('', 'class ImageUnacceptable(Invalid):')
class SheepdogTagNotFound(SheepdogVDINotFound):
    msg_fmt = _("Sheepdog gateway %(gateway)s: '%(command)s' found the VDI "
                "and not its snapshot: %(reason)s")


@after('', 'class ImageUnacceptable(Invalid):')
class SheepdogVDIExists(SheepdogError):
    msg_fmt = _("Sheepdog gateway %(gateway)s: '%(command)s' found a VDI of "
                "that name: %(reason)s")


@after('', 'class ImageUnacceptable(Invalid):')
class TgtError(NovaException):
    msg_fmt = _("The tgtd of this host: '%(command)s' failed: %(reason)s")
