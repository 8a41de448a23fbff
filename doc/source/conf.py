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

import ast
import pathlib
import sys

from docutils import nodes
from docutils.parsers import rst

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / 'nova/tests/functional/libvirt'

sys.path.insert(0, str(ROOT / 'tools'))

from graft import page  # noqa: E402
import sizes  # noqa: E402

project = 'nova-sheepdog'
copyright = 'the nova-sheepdog developers'
extensions = ['openstackdocstheme']
openstackdocs_auto_name = False
openstackdocs_auto_version = False
openstackdocs_use_storyboard = False
html_theme = 'openstackdocs'
# The table of contents is at the left of each page, and once.
html_theme_options = {'display_toc': False}
html_static_path = ['_static']
html_css_files = ['tables.css']
# What goes into pages of Nova.
exclude_patterns = [
    str(path.relative_to(ROOT / 'doc/source'))
    for path in (ROOT / 'doc/source/admin').rglob('*.rst')
    if page.is_fragment(path.read_text(encoding='utf-8'))]
nitpicky = True


def _methods(module, name):
    """Names of the methods of a test case, its bases in the module too."""
    path = TESTS / (module + '.py')
    tree = ast.parse(path.read_text()) if path.exists() else None
    classes = {node.name: node for node in getattr(tree, 'body', ())
               if isinstance(node, ast.ClassDef)}
    names = [name]
    for name in names:
        if name in classes:
            names += [base.id for base in classes[name].bases
                      if isinstance(base, ast.Name)]
    return {node.name for name in names if name in classes
            for node in classes[name].body
            if isinstance(node, ast.FunctionDef)}


def functional_test(name, rawtext, text, lineno, inliner, options=None,
                    content=()):
    """The role that names a functional test, which has to exist.

    MODULE.CLASS.METHOD is one of nova/tests/functional/libvirt.
    """
    module, _dot, rest = text.partition('.')
    case, _dot, method = rest.partition('.')
    if not method or method not in _methods(module, case):
        message = inliner.reporter.error(
            'There is no functional test %s.' % text, line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]
    return [nodes.literal(rawtext, '%s.%s' % (case, method))], []


class Sizes(rst.Directive):
    """The table of tools/sizes.py for this tree."""

    def run(self):
        table = sizes.table()
        return [nodes.literal_block(table, table, language='none')]


def setup(app):
    app.add_directive('sizes', Sizes)
    app.add_role('test', functional_test)
    return {'parallel_read_safe': True}
