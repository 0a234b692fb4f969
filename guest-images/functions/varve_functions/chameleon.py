"""chameleon: render an HTML table from a page template."""

import random

from chameleon import PageTemplate

ARGUMENTS = {"rows": (300, 1, 20_000), "columns": (20, 1, 500)}

_TEMPLATE = PageTemplate(
    '<table xmlns:tal="http://xml.zope.org/namespaces/tal">'
    '<tr tal:repeat="row rows"><td tal:repeat="cell row" class="${cell % 2 and \'odd\' or \'even\'}">'
    '<b tal:content="cell"/></td></tr></table>')


def warm():
    _TEMPLATE.render(rows=[[0, 1]])


def run(seed, rows, columns):
    dice = random.Random(seed)
    table = [[dice.randrange(1 << 20) for _ in range(columns)] for _ in range(rows)]
    html = _TEMPLATE.render(rows=table)
    return html.encode(), {"bytes": len(html)}
