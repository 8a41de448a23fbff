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

from nova.exception import NovaException
from nova.i18n import _


class SheepdogError(NovaException):
    msg_fmt = _("Sheepdog: %(reason)s")


class SheepdogUnreachable(SheepdogError):
    msg_fmt = _("The Sheepdog gateway of this host does not answer; try "
                "again when it does. (%(reason)s)")


class SheepdogVDINotFound(SheepdogError):
    msg_fmt = _("There is no such VDI or snapshot: %(reason)s")


class SheepdogTagNotFound(SheepdogVDINotFound):
    msg_fmt = _("The VDI has no such snapshot: %(reason)s")


class SheepdogVDIExists(SheepdogError):
    msg_fmt = _("There is a VDI of that name: %(reason)s")


class TgtError(NovaException):
    msg_fmt = _("The tgtd of this host failed: %(reason)s")


class TgtUnreachable(TgtError):
    msg_fmt = _("The tgtd of this host does not run; start it, as by "
                "'systemctl start tgt' (%(reason)s)")
