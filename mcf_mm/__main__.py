"""The command ``mcf-mm``, also ``python -m mcf_mm``: runs the scripts of the folder ``tools``."""

import ast
import sys
from pathlib import Path
from types import ModuleType

import mcf_mm
from mcf_mm.compat.versions import advice, openmmlab_problems
from mcf_mm.shipped import command_name, shipped

USAGE = 'usage: mcf-mm COMMAND [ARGUMENT ...]'


def commands() -> dict[str, Path]:
    """Return the script of each command, by name."""
    return {command_name(script.stem): script for script in sorted(shipped('tools').glob('*.py'))}


def help_text() -> str:
    """Return one line for each command: the first of its script's docstring."""
    lines = {'configs': 'Prints the folder of the configs that come with mcf_mm.'}
    for name, script in commands().items():
        text = ast.get_docstring(ast.parse(script.read_text(encoding='utf-8'))) or ''
        lines[name] = text.partition('\n')[0]
    width = max(map(len, lines))
    listed = '\n'.join(f'  {name:{width}}  {lines[name]}' for name in sorted(lines))
    return (
        f'{USAGE}\n\n{mcf_mm.__doc__.splitlines()[0]}\n\n{listed}\n\n'
        'mcf-mm COMMAND --help tells more. What is python tools/NAME.py elsewhere is mcf-mm NAME.\n'
        'Configs of mcf_mm can be given as configs/... in any folder; a file there goes first.'
    )


def run_script(script: Path, arguments: list[str]) -> None:
    """Run a script as ``python`` does, but for its name: argparse shows that of the command.

    ``runpy.run_path`` would put the name of the file there.
    """
    sys.argv = [f'mcf-mm {command_name(script.stem)}', *arguments]
    sys.path.insert(0, str(script.parent))
    main_module = ModuleType('__main__')
    main_module.__file__ = str(script)
    sys.modules['__main__'] = main_module  # where processes that it starts look for it
    exec(compile(script.read_bytes(), script, 'exec'), vars(main_module))


def main() -> None:
    """Run the command that ``sys.argv`` names, with the rest of it.

    Raises:
        SystemExit: The command is unknown (status 2), OpenMMLab is needed and missing (status 1),
            or the script ended with a status.
    """
    name, arguments = (sys.argv[1:2] or [''])[0], sys.argv[2:]
    try:
        if name in ('-h', '--help'):
            print(help_text())
        elif name == '--version':
            print(f'mcf-mm {mcf_mm.__version__}')
        elif name == 'configs' and not arguments:
            print(shipped('configs'))
        elif command_name(name) in (scripts := commands()):
            run_script(scripts[command_name(name)], arguments)
        else:
            problem = f'there is no command {name!r}' if name else 'a command is missing'
            if name == 'configs':
                problem = f'configs takes no arguments, got {" ".join(arguments)}'
            known = ', '.join(sorted([*scripts, 'configs']))
            print(f'{USAGE}\nmcf-mm: error: {problem}; there are {known}', file=sys.stderr)
            sys.exit(2)
    except ImportError as error:
        if problems := openmmlab_problems():
            sys.exit(f'error: {error}. {advice(problems)}')
        raise


if __name__ == '__main__':
    main()
