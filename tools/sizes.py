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

"""Count the lines of the product: code, docstrings and comments per file.

Blank lines, tests and the licence at the head of a file do not count.
"""

import argparse
import ast
import io
import pathlib
import tokenize

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
          tokenize.ENDMARKER}


def count(source):
    """Count the lines of a Python file.

    :param source: its text
    :returns: lines of code, of docstrings and of comments
    """
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
                ast.get_docstring(node, clean=False) is not None):
            docstring = node.body[0]
            docstrings.update(
                range(docstring.lineno, docstring.end_lineno + 1))
    code, comments = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        lines = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            comments.update(lines)
        elif token.type not in LAYOUT:
            code.update(lines)
    # The licence ends where a line is no comment.
    licence = 1
    while licence in comments:
        comments.remove(licence)
        licence += 1
    code -= docstrings
    return len(code), len(docstrings), len(comments - code - docstrings)


def table(tree=ROOT):
    """Return the table of the files of a tree, a str."""
    nova = pathlib.Path(tree) / 'nova'
    rows = [(str(path.relative_to(nova.parent)),
             *count(path.read_text(encoding='utf-8')))
            for path in sorted(nova.rglob('*.py'))
            if 'tests' not in path.relative_to(nova).parts]
    rows.append(('total', *(sum(column)
                            for column in list(zip(*rows))[1:])))
    lines = [f'{"file":40}{"code":>6}{"docstrings":>12}{"comments":>10}']
    lines += [f'{name:40}{code:6}{docstrings:12}{comments:10}'
              for name, code, docstrings, comments in rows]
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'tree', nargs='?', default=ROOT,
        help='the tree to count, such as one of another commit (default: the '
        'tree that this script is in)')
    print(table(parser.parse_args().tree))


if __name__ == '__main__':
    main()
