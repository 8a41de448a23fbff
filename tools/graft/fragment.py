# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""What a fragment says about its place in Nova.

A fragment stands at the path of the Nova file it adds to and is valid Python,
for linters and editors. It is never run: the weaver reads it. It may hold

* definitions, and plain assignments with the comments directly above them.
  They go to the end of the module, in their order, and their comments and
  decorators with them;
* a class that Nova's file has, without a decorator: it only names the class
  which the places inside it are in. What it defines goes to its end;
* the functions below as decorators, where a place matters. On a function named
  ``_`` the statements of its body go in, with the comments among them; what
  its parameters are does not matter. On any other function or class the
  definition goes in whole, but for the decorator of this module;
* calls of ``substitute``;
* imports. Those which Nova's file lacks are added to it. Those of the file's
  own names (``from nova.virt.libvirt.driver import LOG`` in the fragment of
  driver.py) and of this module are for linters and stay out.

Nothing else; other comments and docstrings are for the reader of the fragment.

Every place is given by two texts. ``where`` is the name of the function which
the statement is in, at any depth, or ``''`` for the level of the module or
class itself. ``first_line`` is the statement's first line without its
indentation, in whole; for a decorated definition its ``def`` or ``class``
line. A tuple of lines stands for a statement that reads differently in
different releases. Exactly one statement must be found.

What goes in one place keeps the order of the fragment. Between definitions,
and between those and statements, go as many blank lines as Nova wants; a blank
line at the begin of a body goes in with it.
"""


def _place(where, first_line):
    def decorator(definition):
        return definition
    return decorator


def after(where, first_line):
    """Put the definition after a statement, with all that it holds.

    :param where: function that the statement is in, '' for none
    :param first_line: the statement's first line, or a tuple of alternatives
    :returns: a decorator
    """
    return _place(where, first_line)


def before(where, first_line):
    """Put the definition before a statement and the comment above it.

    The parameters are those of ``after``.
    """
    return _place(where, first_line)


def substitute(where, first_line, old, new):
    """Change a piece of text inside of a statement that cannot be split.

    This is a call of its own, not a decorator.

    :param where: function that the statement is in, '' for none
    :param first_line: the statement's first line, or a tuple of alternatives
    :param old: text that occurs once in the source of the statement
    :param new: the text to put there
    """
