"""What the bridges of Perl, PHP and Ruby do alike and no transcript shows: forks, unreadable files, data of errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conformance.driver import REPLY_TIMEOUT_S, Bridge, Worker, bridge_of, starter
from missing import give_up

LANGUAGES = ("perl", "php", "ruby")

FORKS = {
    "perl": """
        on_start(sub { my $pid = fork; waitpid $pid, 0 if $pid });
        my ($child, $context);
        END { $context->log('at exit') if $child }
        command item => sub {
            (my $args, $context) = @_;
            return $args->{n} if !$args->{child};
            my $pid = fork;
            if (!$pid) {
                $child = 1;
                $context->log('in the child');
                exit 0 if $args->{child} eq 'exits';
                return 'child';
            }
            waitpid $pid, 0;
            return 'parent';
        };
        """,
    "php": """<?php
        on_start(function () {
            $pid = pcntl_fork();
            return $pid && pcntl_waitpid($pid, $status);
        });
        command('item', function (array $args, $ctx) {
            if (!isset($args['child'])) {
                return $args['n'];
            }
            $pid = pcntl_fork();
            if ($pid === 0) {
                register_shutdown_function(fn () => $ctx->log('at exit'));
                $ctx->log('in the child');
                if ($args['child'] === 'exits') {
                    exit(0);
                }
                return 'child';
            }
            pcntl_waitpid($pid, $status);
            return 'parent';
        });
        """,
    "ruby": """
        on_start { (pid = fork) && Process.wait(pid) }
        at_exit { context.log('at exit') if $child }
        command('item') do |n: nil, child: nil|
          return n unless child

          work = lambda do
            $child = true
            context.log('in the child')
          end
          pid = child == 'exits' ? fork(&work) : fork
          if pid.nil?
            work.call
            return 'child'
          end
          Process.wait(pid)
          'parent'
        end
        """,
}
DEEP = {
    "perl": """
        package Failure { sub data { $_[0]{data} } sub message { 'too deep' } }
        command deep => sub {
            my ($value, $levels) = (1, $_[0]{levels});
            $value = [$value] for 1 .. $levels;
            die bless { data => $value }, 'Failure';
        };
        """,
    "php": """<?php
        class Failure extends Exception { public $data = 1; }
        command('deep', function (int $levels) {
            $failure = new Failure('too deep');
            while ($levels--) {
                $failure->data = [$failure->data];
            }
            throw $failure;
        });
        """,
    "ruby": """
        class Failure < StandardError; attr_accessor :data; end
        command('deep') do |levels:|
          failure = Failure.new('too deep')
          failure.data = levels.times.reduce(1) { |inner, _| [inner] }
          raise failure
        end
        """,
}
# PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root read any file.
WITHOUT_PRIVILEGES = (
    "import ctypes, os, sys\n"
    "for number in (1, 2): ctypes.CDLL(None).prctl(24, number, 0, 0, 0)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture(params=LANGUAGES)
def bridge(request: pytest.FixtureRequest, require_runtime: Callable[[str], str]) -> Bridge:
    """Return the bridge of each language."""
    require_runtime(request.param)
    return bridge_of(request.param)


def test_children_of_handlers_write_nothing_to_the_stream(bridge: Bridge, tmp_path: Path) -> None:
    """Neither their log, nor copies of replies that wait to be written, nor replies of their own, nor do they read."""
    if bridge.language == "php":
        asked = [bridge.argv[0], "-r", "exit(function_exists('pcntl_fork') ? 0 : 1);"]
        if subprocess.run(asked, timeout=REPLY_TIMEOUT_S, check=False).returncode:
            give_up("this PHP has no pcntl")
    with starter(bridge, tmp_path)(FORKS[bridge.language]) as worker:
        worker.start()

        batch = [{"n": 0}, {"child": "exits"}, {"child": "returns"}, {"n": 3}]
        worker.send({"id": 1, "command": "item", "batch": batch})
        replies = [worker.receive() for _ in range(4)]
        after = worker.call(2, "ping")
        worker.close_requests()

        assert [(0, 0), (1, "parent"), (2, "parent"), (3, 3)] == [
            (reply.get("index"), reply.get("result")) for reply in replies
        ]
        assert (2, True) == (after["id"], after["success"])
        assert (0, b"") == (worker.wait(), worker.receive_end())
        assert 2 == worker.stderr().count("in the child")
        assert "at exit" in worker.stderr()


@pytest.mark.skipif(sys.platform != "linux", reason="takes root's right to read everything by prctl")
def test_handler_file_that_cannot_be_read_fails_the_start(bridge: Bridge, tmp_path: Path) -> None:
    """With its name and the system's reason; a worker without its commands would look healthy."""
    path = tmp_path / f"handlers{Path(bridge.handlers).suffix}"
    path.touch(mode=0o000)
    with Worker([sys.executable, "-c", WITHOUT_PRIVILEGES, *bridge.argv, "--handlers", str(path)]) as worker:
        error = worker.start()["error"]

        assert str(path) in error["message"]
        assert "Permission denied" in error["message"]
        assert 1 == worker.wait()


def test_data_of_an_error_is_sent_or_left_out(bridge: Bridge, tmp_path: Path) -> None:
    """Whatever its depth, the error arrives and the worker lives."""
    with starter(bridge, tmp_path)(DEEP[bridge.language]) as worker:
        worker.start()

        errors = {levels: worker.call(levels, "deep", {"levels": levels})["error"] for levels in (255, 256, 257)}

        assert {"too deep"} == {error["message"] for error in errors.values()}
        assert ["data" in errors[255], "data" in errors[257]] == [True, False]
