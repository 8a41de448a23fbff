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

import textwrap

import ddt
import testtools

from graft import source
from graft import weave

PATH = 'nova/virt/driver.py'
VERBS = ''.join(f'from graft.fragment import {verb}\n'
                for verb in ('after', 'before', 'substitute'))


@ddt.ddt
class WeaveTestCase(testtools.TestCase):

    def weave(self, fragment, before):
        return weave.weave(VERBS + textwrap.dedent(fragment),
                           textwrap.dedent(before), PATH, '34.0.0')

    def assert_woven(self, fragment, before, after):
        self.assertEqual(textwrap.dedent(after), self.weave(fragment, before))

    def assert_refused(self, fragment, before, *texts):
        error = self.assertRaises(
            source.Misfit, self.weave, fragment, before)
        self.assertEqual(len(texts), len(error.problems), error.problems)
        for text, problem in zip(texts, error.problems):
            self.assertIn(text, problem)
            self.assertTrue(problem.startswith(PATH + ':'), problem)

    def test_statements_in_a_method(self):
        self.assert_woven('''
            class Driver:
                # Not this: it explains the hunk.
                @after('cleanup', "if kind == 'rbd':")
                def _(self, kind):
                    # This goes in
                    if kind == 'sheepdog':
                        self.clean(kind,
                                   now=True)  # and this
                    # and that
            ''', '''
            class Driver:
                def cleanup(self):
                    for kind in kinds:
                        if kind == 'rbd':
                            pass
                        # about the last line
                        last()
            ''', '''
            class Driver:
                def cleanup(self):
                    for kind in kinds:
                        if kind == 'rbd':
                            pass
                        # This goes in
                        if kind == 'sheepdog':
                            self.clean(kind,
                                       now=True)  # and this
                        # and that
                        # about the last line
                        last()
            ''')

    def test_after_a_whole_statement(self):
        self.assert_woven('''
            @after('run', 'try:')
            def _():
                two()
            ''', '''
            def run():
                try:
                    one(a,
                        b)
                except ValueError:
                    pass
                else:
                    pass
                    # belongs to the else
            ''', '''
            def run():
                try:
                    one(a,
                        b)
                except ValueError:
                    pass
                else:
                    pass
                    # belongs to the else
                two()
            ''')

    @ddt.data('except ValueError:', 'finally:', 'else:', 'elif a:')
    def test_clause_is_no_statement(self, clause):
        self.assert_refused(f'''
            @after('run', '{clause}')
            def _():
                two()
            ''', '''
            def run():
                try:
                    one()
                except ValueError:
                    pass
                else:
                    if b:
                        pass
                    elif a:
                        pass
                finally:
                    pass
            ''', 'no such statement')

    def test_inside_of_every_kind_of_block(self):
        before = '''
            def run():
                try:
                    a()
                except ValueError:
                    b()
                else:
                    c()
                finally:
                    d()
                while x:
                    e()
                else:
                    f()
                with x:
                    def g():
                        h()
            '''
        fragment, after = '', before
        for name in 'abcdefh':
            fragment += textwrap.dedent(f'''
                substitute('run', '{name}()', '{name}', '{name.upper()}')
                ''')
            after = after.replace(f' {name}()', f' {name.upper()}()')
        self.assert_woven(fragment, before, after)

    def test_before_takes_the_comment_along(self):
        self.assert_woven('''
            @before('run', 'two()')
            def _():
                one()
            ''', '''
            def run():
                zero()

                # Why two,
                # at length
                two()
            ''', '''
            def run():
                zero()

                one()
                # Why two,
                # at length
                two()
            ''')

    def test_blank_line_at_the_begin_of_a_body_goes_in(self):
        self.assert_woven('''
            @after('', 'one = 1')
            def _():

                two = 2
            ''', '''
            one = 1
            ''', '''
            one = 1

            two = 2
            ''')

    def test_substitute(self):
        self.assert_woven('''
            substitute('', 'opts = [',
                       "'raw',\\n", "'raw',\\n  'sheepdog',\\n")

            class Backend:
                substitute('__init__', 'self.kinds = {', old='Rbd,',
                           new='Rbd, 2: Sheepdog,')
            ''', '''
            kind = ('raw',
                    'qcow2')
            opts = [
              'raw',
              'default']

            class Backend:
                def __init__(self):
                    self.kinds = {
                        1: Rbd,
                    }
            ''', '''
            kind = ('raw',
                    'qcow2')
            opts = [
              'raw',
              'sheepdog',
              'default']

            class Backend:
                def __init__(self):
                    self.kinds = {
                        1: Rbd, 2: Sheepdog,
                    }
            ''')

    def test_two_substitutions_in_one_statement(self):
        self.assert_woven('''
            substitute('', 'a = [1, 2, 3]', '1', '4')
            substitute('', 'a = [1, 2, 3]', '3', '5, 6')
            ''', 'a = [1, 2, 3]\n', 'a = [4, 2, 5, 6]\n')

    @ddt.data(('x', 0), ('b', 2))
    @ddt.unpack
    def test_substitute_not_once(self, old, count):
        self.assert_refused(
            f"substitute('', 'a = [b, b]', '{old}', 'c')",
            'a = [b, b]\n', f"'{old}' occurs {count} times")

    def test_methods(self):
        self.assert_woven('''
            class Driver:

                # Not this

                # Goes with it
                @after('', 'def one(self):')
                # also this
                @staticmethod
                def two():
                    """Two.

                      More.
                    """

                @after('', 'def one(self):')
                async def three(self):
                    pass

                @before('', 'def one(self):')
                def zero(self):
                    pass

                @after('', 'LAST = 1')
                def four(self):
                    pass
            ''', '''
            class Driver:
                """Doc."""
                @property
                def one(self):
                    pass
                LAST = 1


            other = 1
            ''', '''
            class Driver:
                """Doc."""

                def zero(self):
                    pass

                @property
                def one(self):
                    pass

                # Goes with it
                # also this
                @staticmethod
                def two():
                    """Two.

                      More.
                    """

                async def three(self):
                    pass

                LAST = 1

                def four(self):
                    pass


            other = 1
            ''')

    def test_definitions_in_a_module(self):
        self.assert_woven('''
            @after('', 'ONE = 1')
            def two():
                pass

            @after('', 'class Three:')
            @decorated
            class Four(Three):
                def method(self):
                    pass

            @before('', 'class Three:')
            class Zero:
                pass

            @after('', 'class Three:')
            def _():
                five = Four()
            ''', '''
            ONE = 1
            @final
            class Three:
                def method(self):
                    pass
            ''', '''
            ONE = 1


            def two():
                pass


            class Zero:
                pass


            @final
            class Three:
                def method(self):
                    pass


            @decorated
            class Four(Three):
                def method(self):
                    pass


            five = Four()
            ''')

    def test_statements_at_the_level_of_a_class(self):
        self.assert_woven('''
            class Driver:
                @after('', 'a = 1')
                def _():
                    b = 2
            ''', '''
            a = 1
            class Driver:
                a = 1
                def method(self):
                    a = 1
            ''', '''
            a = 1
            class Driver:
                a = 1
                b = 2

                def method(self):
                    a = 1
            ''')

    def test_property_and_its_setter_are_one_place(self):
        self.assert_woven('''
            class Driver:
                @after('name', 'self._name = value')
                def _(self, value):
                    self.saved = False
            ''', '''
            class Driver:
                @property
                def name(self):
                    return self._name

                @name.setter
                def name(self, value):
                    self._name = value
            ''', '''
            class Driver:
                @property
                def name(self):
                    return self._name

                @name.setter
                def name(self, value):
                    self._name = value
                    self.saved = False
            ''')

    def test_same_place_keeps_the_order(self):
        self.assert_woven('''
            @after('run', 'one()')
            def _():
                a()

            @before('run', 'two()')
            def _():
                c()

            @after('run', 'one()')
            def _():
                b()

            @before('run', 'two()')
            def _():
                d()
            ''', '''
            def run():
                one()
                two()
            ''', '''
            def run():
                one()
                a()
                b()
                c()
                d()
                two()
            ''')

    def test_strings_are_not_indented(self):
        before = '''
            def run():
                one()
            '''
        woven = self.weave('''
            @after('', 'def run():')
            def _():
                a = """
              b
                c
            """
                d = ('e'
                     'f')
                g = f"""
                {a}
                """

            @after('run', 'one()')
            def _():
                if a:
                    b = """
                    c"""
            ''', before)
        names = {}
        exec(woven, names)
        self.assertEqual('\n  b\n    c\n', names['a'])
        self.assertEqual('ef', names['d'])
        self.assertEqual('\n    \n  b\n    c\n\n    ', names['g'])
        self.assertIn('    if a:\n        b = """\n        c"""\n', woven)

    def test_alternatives(self):
        fragment = '''
            @after('run', ('one(1)', 'one()'))
            def _():
                two()
            '''
        for line in ('one()', 'one(1)'):
            self.assert_woven(fragment, f'''
                def run():
                    {line}
                ''', f'''
                def run():
                    {line}
                    two()
                ''')
        self.assert_refused(fragment, '''
            def run():
                one()
                one(1)
            ''', '2 such statements, in lines 3, 4')

    def test_two_places(self):
        self.assert_refused('''
            @after('run', 'one()')
            def _():
                two()
            ''', '''
            def run():
                one()
                if a:
                    one()
            ''', f":5: after 'one()' in run of {PATH}: 2 such statements, in "
            'lines 3, 5 (Nova 34.0.0)')

    def test_no_place(self):
        self.assert_refused('''
            class Driver:
                @after('run', 'self.one(a)')
                def _():
                    two()

            @after('', 'self.one(a, b)')
            def _():
                two()

            @after('walk', 'self.one(a, b)')
            def _():
                two()
            ''', '''
            class Driver:
                def run(self):
                    self.one(a, b)
            ''',
            "Driver.run of nova/virt/driver.py: no such statement; the "
            "nearest is 'self.one(a, b)' (Nova 34.0.0)",
            'in the module of nova/virt/driver.py: no such statement',
            'has no walk at its top level')

    def test_has_the_definition_already(self):
        self.assert_refused('''
            class Driver:
                @after('', 'def one(self):')
                def two(self):
                    pass
            ''', '''
            class Driver:
                def one(self):
                    pass

                def two(self):
                    pass
            ''', 'has Driver.two already')

    def test_what_has_no_place_goes_to_the_end(self):
        self.assert_woven('''
            import os

            # Not this

            # Seconds
            LIFE = 3
            ROOM: int = (
                4)

            # About two
            @functools.cache
            def two():
                return """
            2"""

            class Driver:
                """Not this."""

                # About three
                @property
                def three(self):
                    pass
                    # still three

                @after('last', 'pass')
                def _():
                    two()

                KIND = 'sheepdog'

            # About four
            @final
            class Four(Driver):
                """Four."""
                five = 5

                def method(self):
                    pass

            SIX = 6
            ''', '''
            import os

            class Driver:
                def last(self):
                    pass
                    # about the last method

            # the end

            ''', '''
            import os

            class Driver:
                def last(self):
                    pass
                    two()
                    # about the last method

                # About three
                @property
                def three(self):
                    pass
                    # still three

                KIND = 'sheepdog'

            # the end


            # Seconds
            LIFE = 3
            ROOM: int = (
                4)


            # About two
            @functools.cache
            def two():
                return """
            2"""


            # About four
            @final
            class Four(Driver):
                """Four."""
                five = 5

                def method(self):
                    pass


            SIX = 6

            ''')

    def test_the_end_of_a_module_of_statements(self):
        self.assert_woven('''
            # Why

            two = 2

            # Three
            three = 3
            ''', 'one = 1\n', '''\
            one = 1

            two = 2

            # Three
            three = 3
            ''')

    @ddt.data('def run():\n    pass', 'class run:\n    pass', 'run = 1',
              'a, run = 1, 2')
    def test_has_the_name_already(self, fragment):
        for before in ('import run\n', 'from a import b as run\n',
                       'def run():\n    pass\n', 'if a:\n    run = 1\n'):
            self.assert_refused(fragment, before, 'has run already')

    def test_has_the_name_in_a_class_already(self):
        self.assert_refused('''
            class Driver:
                def one(self):
                    pass

                def two(self):
                    pass
            ''', '''
            class Driver:
                one = 1
            ''', 'has Driver.one already')

    def test_places_in_a_class_that_nova_lacks(self):
        self.assert_refused('''
            class Drivr:
                @after('run', 'one()')
                def _(self):
                    two()

                def three(self):
                    pass
            ''', '''
            class Driver:
                def run(self):
                    one()
            ''', 'has no Drivr.run', 'has no Drivr at')

    def test_changes_on_top_of_each_other(self):
        self.assert_refused('''
            substitute('', 'a = (1,', '1,\\n  2', '3')

            @after('', 'a = (1,')
            def _():
                b = 4

            substitute('', 'a = (1,', '2', '5')
            ''', 'a = (1,\n  2)\n',
            'changes text that line 5 of the fragment changes too')

    def test_result_is_not_python(self):
        self.assert_refused('''
            substitute('', 'a = (b)', '(', '[')
            ''', 'a = (b)\n', 'the result would not be valid Python')

    def test_imports(self):
        self.assert_woven('''
            import abc
            import zlib

            from oslo_config import cfg, types
            from oslo_utils import units as oslo_units

            from nova import exception
            import nova.conf
            from nova.virt import Sheepdog
            import nova.virt.tgt
            from nova.virt.driver import CONF
            ''', '''
            # Licence

            import os
            # about sys
            import sys

            from copy import deepcopy
            from oslo_config import (
                cfg)

            import nova.conf
            from nova.virt import images
            from nova.virt import volume

            CONF = nova.conf.CONF
            ''', '''
            # Licence

            import abc
            import os
            # about sys
            import sys
            import zlib

            from copy import deepcopy
            from oslo_config import (
                cfg)
            from oslo_config import types
            from oslo_utils import units as oslo_units

            import nova.conf
            from nova import exception
            from nova.virt import images
            from nova.virt import Sheepdog
            import nova.virt.tgt
            from nova.virt import volume

            CONF = nova.conf.CONF
            ''')

    def test_import_that_is_conditional_in_nova(self):
        before = 'import os\ntry:\n    import libvirt\nexcept A:\n    pass\n'
        self.assert_woven('import libvirt\n', before, before)

    @ddt.data(('from os import conf', 'from nova import conf'),
              ('conf = 1', 'import conf'),
              ('import nova', 'import os as nova'))
    @ddt.unpack
    def test_import_of_a_name_that_is_something_else(self, before, wanted):
        self.assert_refused(f'{wanted}\n', f'import abc\n{before}\n',
                            f'"{wanted}": {PATH} has another')

    def test_import_without_a_place(self):
        self.assert_refused('import os\n', 'import nova.conf\n',
                            f'"import os": {PATH} has no block of such')

    def test_own_names(self):
        self.assert_woven('''
            from nova.virt.driver import ONE
            from nova.virt.driver import TWO

            @after('', 'ONE = 1')
            def _():
                TWO = 2
            ''', 'ONE = 1\n', 'ONE = 1\nTWO = 2\n')
        self.assert_refused('from nova.virt.driver import CONF\n', 'a = 1\n',
                            f':4: {PATH} has no CONF')

    def test_the_rest_stays(self):
        before = 'a = 1\x0c\n\n\n\n\tb\n'.replace('\tb', '# \u2028 b\t ')
        self.assert_woven('''
            @after('', 'a = 1')
            def _():
                c = 2
            ''', before, before.replace('\n', '\nc = 2\n', 1))

    def test_file_without_a_last_line_end(self):
        self.assert_woven('''
            @after('', 'a = 1')
            def _():
                b = 2''', 'a = 1', 'a = 1\nb = 2\n')

    def test_nova_that_this_python_cannot_read(self):
        error = self.assertRaises(source.Misfit, self.weave, '', 'a = (\n')
        self.assertIn('this Python cannot read it', str(error))

    @ddt.data(
        ('a += 1', 'a fragment holds imports'),
        ('def _():\n    pass', '_ needs one of @after'),
        ("@after('', 'a')\n@after('', 'b')\ndef run():\n    pass",
         'run needs one of @after'),
        ("@after('', 'a')\ndef _(): pass", 'on a line of their own'),
        ("@after('a')\ndef run():\n    pass", "missing a required argument"),
        ("@after('', a)\ndef run():\n    pass", 'after(): '),
        ("substitute('', 1, '', '')", 'substitute(): '),
        ('from graft import fragment', 'is not understood'),
        ('from . import driver', 'is not understood'),
        ('from os import *', 'is not understood'),
        ('a = (', ''))
    @ddt.unpack
    def test_no_fragment(self, fragment, message):
        self.assert_refused(fragment, 'a = 1\n', message)

    def test_fragment_or_new_file(self):
        self.assertTrue(source.is_fragment(VERBS, PATH))
        self.assertFalse(source.is_fragment('import graft\n', PATH))
        self.assertRaises(source.Misfit, source.is_fragment, '(', PATH)
