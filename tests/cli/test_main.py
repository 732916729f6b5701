"""The dispatcher: lazy commands, exit codes, one line for a mistake."""

import subprocess
import sys
import types

import pytest

from medsd_jax.cli import main as cli
from medsd_jax.errors import DivergedError, UserError


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `medsd_jax echo ...`, a command whose body is given; returns (code, stdout, stderr)."""

    def run_command(body, *words):
        module = types.ModuleType("medsd_jax.cli.echo")

        def add_parser(subparsers):
            parser = subparsers.add_parser("echo", help="say it")
            parser.add_argument("--output", required=True)
            parser.add_argument("--dtype", choices=["float32", "bfloat16"])

        module.add_parser = add_parser
        module.run = body
        monkeypatch.setitem(sys.modules, "medsd_jax.cli.echo", module)
        monkeypatch.setitem(cli.COMMANDS, "echo", "say it")
        code = cli.main(list(words))
        return code, *capsys.readouterr()

    return run_command


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1)])
def test_exit_code_is_the_commands(run, result, code):
    assert run(lambda args: result, "echo", "--output", "x") == (code, "", "")


def test_user_error_is_one_line_and_2(run):
    def body(args):
        raise UserError(f"{args.output} is not a folder;\n  name one")

    code, _, err = run(body, "echo", "--output", "x")
    assert (code, err) == (2, "medsd_jax: error: x is not a folder; name one\n")


def test_a_training_that_diverged_is_one_line_and_1(run):
    def body(args):
        raise DivergedError("loss is nan\nat step 3")

    code, _, err = run(body, "echo", "--output", "x")
    assert (code, err) == (1, "medsd_jax: error: loss is nan at step 3\n")


def test_pages_of_somebody_s_file_are_cut_and_the_way_out_stays(run):
    def body(args):
        raise UserError(f"key {'x' * 5000} is unknown; write another one")

    _, _, err = run(body, "echo", "--output", "x")
    assert len(err) < 750 and err.startswith("medsd_jax: error: key xxx")
    assert err.endswith("is unknown; write another one\n") and err.count("\n") == 1


def test_interrupt_is_130(run):
    def body(args):
        raise KeyboardInterrupt

    code, _, err = run(body, "echo", "--output", "x")
    assert (code, err) == (130, "medsd_jax: interrupted\n")


def test_a_bug_keeps_its_traceback(run):
    def body(args):
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        run(body, "echo", "--output", "x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "COMMAND"),
        (["ehco"], "'ehco'"),
        (["echo"], "--output"),
        (["echo", "--output", "x", "--outptu", "y"], "--outptu (did you mean --output?)"),
        (["echo", "--out", "x"], "--output"),
        (["echo", "--output", "x", "--dtype", "int8"], "'int8'"),
        (["echo", "--output", "x", "extra"], "unknown argument extra"),
        (["--quiet", "echo", "--output", "x"], "--quiet"),
    ],
)
def test_wrong_words_are_one_line_and_2(run, words, message):
    code, out, err = run(lambda args: pytest.fail("must not run"), *words)
    assert code == 2 and out == ""
    assert err.startswith("medsd_jax: error: ") and err.count("\n") == 1
    assert message in err and "--help" in err


def test_no_help_waits_for_jax():
    code = (
        "import contextlib, sys\n"
        "from medsd_jax.cli.main import COMMANDS, main\n"
        "def heavy():\n"
        "    return {'jax', 'flax', 'transformers', 'tensorflow_datasets'} & set(sys.modules)\n"
        "for words in ([], *(command.split() for command in COMMANDS if command != 'data')):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main([*words, '--help'])\n"
        "    assert not heavy(), (words, heavy())\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['data', '--help'])\n"
        "assert 'jax' not in heavy()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())  # argparse wraps lines
    for command, summary in cli.COMMANDS.items():
        assert f" {command} {summary}" in words


def test_module_entry_point_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "medsd_jax", "dmeo"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "dmeo" in done.stderr


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_command_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main([*command.split(), "--help"])
    assert leave.value.code == 0
    assert f"medsd-jax {command} --" in capsys.readouterr().out.split("usage:")[1]
