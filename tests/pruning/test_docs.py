"""The example of CONTRIBUTING.md runs and prints what it says."""

import re
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[2] / 'CONTRIBUTING.md'


def test_the_example_of_a_criterion_prints_what_the_guide_says(capsys):
    section = GUIDE.read_text(encoding='utf-8').split('## Add a criterion')[1].split('\n## ')[0]
    (code,) = re.findall(r'```python\n(.*?)```', section, re.DOTALL)
    (printed,) = re.findall(r'```text\n(.*?)```', section, re.DOTALL)
    exec(compile(code, str(GUIDE), 'exec'), {'__name__': 'example'})
    assert capsys.readouterr().out == printed
