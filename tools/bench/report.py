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

"""Shows and keeps what was measured."""

import itertools
import json
import textwrap

# Of the table: title and width of each column
COLUMNS = (('figure', 34), ('against', 26), ('measured', 12), ('wanted', 13),
           ('met', 3))
MET = {True: 'yes', False: 'NO', None: ''}


def make_table(lines):
    """:param lines: the figures.Lines
    :returns: the table, a list of lines of text
    """
    table = [[title for title, _width in COLUMNS],
             ['=' * width for _title, width in COLUMNS]]
    for line in lines:
        row = line.row
        if line.value is None:
            words = line.reason, row.wanted, ''
        else:
            words = (row.show(line.value), row.wanted,
                     MET[row.is_met(line.value)])
        table += itertools.zip_longest(*(
            textwrap.wrap(text, width) for text, (_title, width) in
            zip((row.words, row.against, *words), COLUMNS)), fillvalue='')
    return ['  '.join(text.ljust(width) for text, (_title, width) in
                      zip(row, COLUMNS)).rstrip() for row in table]


def write_json(path, about, lines, results):
    """Keep all that was measured.

    :param path: of the file
    :param about: dict of what it was measured on
    :param lines: dict of the name of a row to its figures.Line
    :param results: dict of the name of a row to what was told of it
    """
    with open(path, 'w') as file:
        json.dump(dict(about, rows={
            name: dict(results.get(name, {}), figure=line.row.words,
                       against=line.row.against, value=line.value,
                       unit=line.row.unit, wanted=line.row.wanted,
                       met=None if line.value is None
                       else line.row.is_met(line.value))
            for name, line in lines.items()}), file, indent=1)
        file.write('\n')


def plot(directory, lines, results):
    """Draw each series of seconds.

    :param directory: where the SVG files are written
    :param lines: as above
    :param results: as above
    :returns: list of the paths of the files
    """
    # Here, as it takes seconds, and --help needs none of it.
    import matplotlib

    matplotlib.use('svg')
    from matplotlib import pyplot

    paths = []
    for name, line in lines.items():
        samples = results.get(name, {}).get('samples')
        if not samples:
            continue
        figure, axes = pyplot.subplots(figsize=(7, 4))
        is_growth = all(label.isdecimal() for label in samples)
        axes.boxplot(list(samples.values()))
        axes.set_xticks(range(1, len(samples) + 1), [
            format(int(label), ',') if is_growth else label
            for label in samples])
        if is_growth:
            axes.set_xlabel('VDIs in the cluster')
        axes.set_ylim(bottom=0)
        axes.set_ylabel('seconds')
        axes.set_title('\n'.join(textwrap.wrap(line.row.words, 60)))
        paths.append(directory / (name + '.svg'))
        figure.savefig(paths[-1], bbox_inches='tight')
        pyplot.close(figure)
    return paths
