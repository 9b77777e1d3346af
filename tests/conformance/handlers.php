<?php
/** The commands that transcripts and misuse tests expect of the PHP bridge; handlers.py has the same. */

declare(strict_types=1);

class Inner extends Exception {}

class Failure extends Exception
{
    public mixed $data = null;
}

function run_shell(string $script): string
{
    $process = proc_open(['sh', '-c', $script], [0 => STDIN, 1 => ['pipe', 'w'], 2 => STDERR], $pipes);
    $output = stream_get_contents($pipes[1]);
    fclose($pipes[1]);
    proc_close($process);
    return $output;
}

function stall(?int $ms): ?int
{
    while ($ms === null) {
        sleep(3600);
    }
    $until = hrtime(true) + $ms * 1_000_000;
    while (hrtime(true) < $until);
    return $ms;
}

on_start(function ($args, $ctx) {
    if ($args['fail'] ?? false) {
        throw new Failure('cannot start');
    }
    $ctx->workerState['start_args'] = $args;
});

command('started', fn ($ctx) => $ctx->workerState['start_args']);
command('identity', fn ($value) => $value);
command('later', fn ($value) => $value);
command('fail', function (string $message = 'boom') {
    $error = new Failure($message, 0, new Inner('deep down'));
    $error->data = ['field' => 'name'];
    throw $error;
});
command('count', fn ($ctx) => $ctx->state['count'] = ($ctx->state['count'] ?? 0) + 1);
command('whoami', fn ($ctx) => ['session' => $ctx->sessionId, 'worker' => $ctx->workerId]);
command('deadline', fn ($ctx) => $ctx->deadline());
command('log_line', function (array $args, $ctx) {
    $ctx->log($args['message'], $args['level'], $args['fields']);
    return 'logged';
});
command('unencodable', function (string $kind) {
    $cycle = new stdClass();
    $cycle->self = $cycle;
    $deep = [];
    for ($i = 0; $i < 300; $i++) {
        $deep = [$deep];
    }
    $values = [
        'nan' => NAN,
        'infinity' => INF,
        'lone surrogate' => "x\xed\xa0\x80",
        'cycle' => $cycle,
        'deep' => $deep,
        'object' => new DateTime('@0'),
    ];
    return ['a' => [$values[$kind]]];
});
command('text', fn (int $size) => str_repeat('x', $size));
command('blob', fn (int $size) => new Bytes(substr(str_repeat(implode('', array_map('chr', range(0, 255))), intdiv($size, 256) + 1), 0, $size)));
command('nested_blobs', fn () => [
    'a/b' => [new Bytes('one')],
    't~' => ['empty' => new Bytes(''), 'two' => new Bytes("\0\1")],
    'n' => null,
]);
command('reverse', fn (Bytes $data) => new Bytes(strrev($data->data)));
command('sizes', fn (array $items) => array_map(fn ($item) => strlen((string) $item), $items));
command('print_text', function (string $line) {
    echo $line, "\n";
    return 'printed';
});
/** Write to descriptor 1, as native code would. */
command('write_fd_1', function (string $line) {
    fwrite(fopen('php://fd/1', 'w'), $line);
    return 'written';
});
command('child_reads_stdin', fn () => run_shell('cat'));
command('child_sees', fn () => preg_split('/\s+/', trim(run_shell(
    "ls -l /proc/self/fd | grep -c pipe: ; env | grep -c '^SNAKEPIT_.*FD'"
))));
command('hang', function ($ctx) {
    $ctx->log('hanging');
    stall(null);
});
command('stall', 'stall');
command('stall_later', 'stall');
command('leave', fn () => exit(0));
command('pid', fn () => getmypid());
