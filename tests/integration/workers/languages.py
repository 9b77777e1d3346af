"""What a user of each language writes: the same small handlers, and the same mistakes."""

from __future__ import annotations

from typing import NamedTuple

from snakepit import JavaAdapter, LuaAdapter, PerlAdapter, PHPAdapter, RAdapter, RubyAdapter, ScriptAdapter


class Language(NamedTuple):
    """What a user of the language writes.

    Attributes:
        adapter: Its class.
        handlers: Commands add(a, b), fail(message), count(), bad(), spin() and die(); on_start keeps its argument,
            which started() returns.
        twice: Registers the command "same" twice.
        broken: Cannot be parsed; the mistake is in line 3.
        kind: Class of the error of ``fail``.
    """

    adapter: type[ScriptAdapter]
    handlers: str
    twice: str
    broken: str
    kind: str


LANGUAGES = {
    "ruby": Language(
        RubyAdapter,
        """
on_start { |model:| context.worker_state["model"] = model }
command("started") { context.worker_state["model"] }
command("add") { |a:, b: 1| a + b }
command("fail") { |message:| raise ArgumentError, message }
command("count") { context.state["n"] = (context.state["n"] || 0) + 1 }
command("bad") { { "a" => [1, Float::NAN] } }
command("spin") { loop {} }
command("die") { Process.kill("KILL", Process.pid); sleep }
""",
        'command("same") { 1 }\ncommand("same") { 2 }\n',
        "a = 1\nb = 2\ncommand('x') { |a: }\n",
        "ArgumentError",
    ),
    "r": Language(
        RAdapter,
        """
on_start <- function(args, ctx) ctx$worker_state$model <- args$model
commands$started <- function(args, ctx) ctx$worker_state$model
commands$add <- function(args, ctx) args$a + if (is.null(args$b)) 1 else args$b
commands$fail <- function(args, ctx) stop(args$message)
commands$count <- function(args, ctx) {
  ctx$state$n <- if (is.null(ctx$state$n)) 1 else ctx$state$n + 1
  ctx$state$n
}
commands$bad <- function(args, ctx) list(a = list(1, NaN))
commands$spin <- function(args, ctx) repeat {}
commands$die <- function(args, ctx) { tools::pskill(Sys.getpid(), 9); Sys.sleep(60) }
""",
        "commands$same <- function(args, ctx) 1\ncommands$same <- function(args, ctx) 2\n",
        "a <- 1\nb <- 2\ncommands$x <- function(args, ctx) { 1 + }\n",
        "simpleError",
    ),
    "perl": Language(
        PerlAdapter,
        """
use strict; use warnings; use feature 'signatures'; no warnings;
on_start(sub ($args, $ctx) { $ctx->worker_state->{model} = $args->{model} });
command started => sub ($args, $ctx) { $ctx->worker_state->{model} };
command add => sub ($args, $ctx) { $args->{a} + ($args->{b} // 1) };
command fail => sub ($args, $ctx) { die "$args->{message}\\n" };
command count => sub ($args, $ctx) { ++$ctx->state->{n} };
command bad => sub ($args, $ctx) { { a => [1, "NaN" + 0] } };
command spin => sub ($args, $ctx) { 1 while 1 };
command die => sub ($args, $ctx) { kill 'KILL', $$; sleep };
1;
""",
        "command same => sub { 1 };\ncommand same => sub { 2 };\n1;\n",
        "use strict;\nmy $b = 2;\ncommand x => sub { $undeclared };\n1;\n",
        "Error",
    ),
    "php": Language(
        PHPAdapter,
        """<?php
on_start(function ($args, $ctx) { $ctx->workerState['model'] = $args['model']; });
command('started', function (array $args, $ctx) { return $ctx->workerState['model']; });
command('add', function (array $args, $ctx) { return $args['a'] + ($args['b'] ?? 1); });
command('fail', function (array $args, $ctx) { throw new DomainException($args['message']); });
command('count', function (array $args, $ctx) { return $ctx->state['n'] = ($ctx->state['n'] ?? 0) + 1; });
command('bad', function (array $args, $ctx) { return ['a' => [1, NAN]]; });
command('spin', function (array $args, $ctx) { while (true) {} });
command('die', function (array $args, $ctx) { posix_kill(getmypid(), 9); sleep(60); });
""",
        "<?php\ncommand('same', function ($args, $ctx) { return 1; });\n"
        "command('same', function ($args, $ctx) { return 2; });\n",
        "<?php\n$b = 2;\ncommand('x', function (array $args, $ctx) { return + ; });\n",
        "DomainException",
    ),
    "lua": Language(
        LuaAdapter,
        """
on_start(function(args, ctx) ctx.worker_state.model = args.model end)
command("started", function(args, ctx) return ctx.worker_state.model end)
command("add", function(args, ctx) return args.a + (args.b or 1) end)
command("fail", function(args, ctx) error({type = "Failure", message = args.message}) end)
command("count", function(args, ctx) ctx.state.n = (ctx.state.n or 0) + 1 return ctx.state.n end)
command("bad", function(args, ctx) return {a = {1, 0/0}} end)
command("spin", function(args, ctx) while true do end end)
command("die", function(args, ctx)
  local pid = io.open("/proc/self/stat"):read("n")
  os.execute("kill -9 " .. pid)
end)
""",
        'command("same", function() return 1 end)\ncommand("same", function() return 2 end)\n',
        'local a = 1\nlocal b = 2\ncommand("x", function(args) return + end)\n',
        "Failure",
    ),
    "java": Language(
        JavaAdapter,
        """
import java.util.*;
import snakepit.SnakepitBridge.*;

class Handlers {
    @OnStart void begin(String model, Context ctx) { ctx.workerState().put("model", model); }
    @Command Object started(Context ctx) { return ctx.workerState().get("model"); }
    @Command int add(int a, Optional<Integer> b) { return a + b.orElse(1); }
    @Command Object fail(String message) { throw new IllegalArgumentException(message); }
    @Command Object count(Context ctx) { return ctx.state().merge("n", 1, (old, one) -> (int) old + 1); }
    @Command Object bad() { return Map.of("a", List.of(1, Double.NaN)); }
    @Command Object spin() { while (true) { } }
    @Command void die() throws Exception {
        new ProcessBuilder("kill", "-9", "" + ProcessHandle.current().pid()).start();
        new java.util.concurrent.CountDownLatch(1).await();
    }
}
""",
        "import snakepit.SnakepitBridge.*;\nclass Twice {\n"
        '    @Command("same") int one() { return 1; }\n    @Command("same") int two() { return 2; }\n}\n',
        "import snakepit.SnakepitBridge.*;\nclass Broken {\n    @Command int x( { return 1; }\n}\n",
        "IllegalArgumentException",
    ),
}
