#!/usr/bin/env php
<?php
/**
 * Snakepit's PHP bridge: answers one host's framed requests, in order, with the functions of a handler file.
 *
 *     php snakepit_bridge.php [--handlers FILE]
 *
 * Needs the command line interpreter of PHP >= 8.0 and nothing else; the extensions pcntl and FFI are used where
 * they are loaded (see "What a language cannot do" in PROTOCOL.md, the normative text, one folder up).
 */

declare(strict_types=1);

namespace Snakepit {

use ArrayObject, Closure, ErrorException, Exception, ReflectionClass, ReflectionFunction, ReflectionNamedType, ReflectionParameter, stdClass, Throwable, TypeError;

const BRIDGE_VERSION = '1.0';
const DEFAULT_MAX_FRAME = 64 * 1024 * 1024; // ASCII text read as a length is far above it: PROTOCOL.md, "Frames"
const LARGEST_MAX_FRAME = 128 * 1024 * 1024 - 1; // from 128 MiB on, a leaked text that a tab leads would be a length
const MAX_DEPTH = 256; // levels of nesting in a result; the host's limit for args is the same
const MAX_MESSAGE_DEPTH = 512; // arbitrary: args at the host's limit and the message around them, with room
const TEXT_CAP_BYTES = 64 * 1024;
const BATCH_WAIT_S = 0.001; // PROTOCOL.md, "batch"
const CHUNK_BYTES = 64 * 1024; // the capacity of a Linux pipe

/** A request that is answered with its code and without a traceback: the message says it all. */
final class Refusal extends Exception
{
    public function __construct(public string $errorCode, public string $type, string $message)
    {
        parent::__construct($message);
    }
}

final class EncodeError extends Exception {}
final class BadJson extends Exception {}
final class LostStream extends Exception {}

function bad_args(string $message): Refusal
{
    return new Refusal('bad_args', 'InvalidArguments', $message);
}

/** Run a file where its functions see no class of the bridge as their own. */
function load_file(string $file): void
{
    require $file;
}

/** One line on stderr; a closed stderr is nobody's reader. */
function complain(string $text): void
{
    @fwrite(\STDERR, "snakepit_bridge: $text\n");
}

function usage(string $text): mixed
{
    complain($text);
    exit(2);
}

// -------------------------------------------------------------------------------------------------- descriptors

/** The C library, or null where the extension FFI is missing: PHP itself can neither close nor mark a descriptor. */
function libc(): ?\FFI
{
    static $libc = false;
    if ($libc === false) {
        try {
            $libc = \extension_loaded('FFI')
                ? \FFI::cdef('int dup(int); int dup2(int, int); int close(int); int fcntl(int, int, ...); void *signal(int, intptr_t);')
                : null;
        } catch (Throwable $refused) {
            $libc = null;
        }
    }
    return $libc;
}

/**
 * Open a descriptor as a stream; where the C library can be called, no child inherits it.
 *
 * @return resource
 */
function take(int $fd, string $mode)
{
    $libc = libc();
    // php://fd duplicates to the lowest free number, which is what this finds out.
    $number = $libc === null ? -1 : $libc->dup($fd);
    if ($number >= 0) {
        $libc->close($number);
    }
    $stream = @fopen("php://fd/$fd", $mode);
    if ($stream === false) {
        usage("descriptor $fd is not open");
    }
    if ($number >= 0) {
        $libc->fcntl($number, 2, 1); // F_SETFD, FD_CLOEXEC
        if ($fd > 2) {
            $libc->close($fd);
        }
    }
    stream_set_read_buffer($stream, 0);
    stream_set_timeout($stream, 1 << 30); // a socket would give up after default_socket_timeout
    return $stream;
}

/** Frames over two streams: exact reads, complete writes. */
final class Stream
{
    public int $maxFrame = DEFAULT_MAX_FRAME;
    private string $buffer = '';
    private int $start = 0;
    private string $held = '';

    /** @param resource $in @param resource $out @param resource|null $claim */
    public function __construct(private $in, private $out, private $claim)
    {
    }

    /** Take the frame descriptors out of the reach of user code, before any of it runs. */
    public static function open(): self
    {
        $named = getenv('SNAKEPIT_FDS');
        $claim = getenv('SNAKEPIT_CLAIM_FD');
        foreach (['SNAKEPIT_FDS', 'SNAKEPIT_CLAIM_FD'] as $name) {
            putenv($name);
            unset($_SERVER[$name], $_ENV[$name]);
        }
        if ($named !== false && preg_match('/^(\d+),(\d+)$/D', $named, $numbers) !== 1) {
            usage("SNAKEPIT_FDS is 'in,out', two numbers, not '$named'");
        }
        if ($named === false) {
            $in = take(0, 'rb');
            $out = take(1, 'wb');
            self::replaceStandardStreams();
        } else {
            $in = take((int) $numbers[1], 'rb');
            $out = take((int) $numbers[2], 'wb');
        }
        $claimStream = null;
        if ($claim !== false && ctype_digit($claim)) {
            $claimStream = take((int) $claim, 'rb');
            stream_set_blocking($claimStream, false);
        }
        return new self($in, $out, $claimStream);
    }

    /** The null device becomes 0, and 1 the same as 2. */
    private static function replaceStandardStreams(): void
    {
        static $kept = [];
        $libc = libc();
        if ($libc === null) {
            fclose(\STDIN);
            $kept[] = fopen('/dev/null', 'r'); // POSIX: the lowest free number, so 0
            fclose(\STDOUT);
            $kept[] = fopen('php://fd/2', 'w');
            return;
        }
        $libc->close(0);
        $kept[] = fopen('/dev/null', 'r');
        $libc->dup2(2, 1);
    }

    public function canClaim(): bool
    {
        return $this->claim !== null;
    }

    /** Take the byte that stands for one request sent ahead; without one, the host has taken it back. */
    public function claimed(): bool
    {
        $byte = fread($this->claim, 1);
        return $byte !== false && $byte !== '';
    }

    /** The next payload, or null at the end of the requests. */
    public function read(): ?string
    {
        $length = $this->readLength();
        return $length === null ? null : $this->readPayload($length);
    }

    /** Bytes that come in frames which are all full but the last. */
    public function readBytes(int $length): string
    {
        $parts = [];
        while ($length > 0) {
            $due = min($length, $this->maxFrame);
            $size = $this->readLength();
            if ($size !== $due) {
                throw new LostStream("a frame of $due bytes was due, got " . ($size === null ? 'the end of the requests' : "one of $size"));
            }
            $parts[] = $this->readPayload($size);
            $length -= $size;
        }
        return count($parts) === 1 ? $parts[0] : implode('', $parts);
    }

    private function readLength(): ?int
    {
        while (strlen($this->buffer) - $this->start < 4) {
            $this->flush();
            $more = $this->readSome(CHUNK_BYTES);
            if ($more === '') {
                if (strlen($this->buffer) === $this->start) {
                    return null;
                }
                throw new LostStream('the requests ended inside a length; ' . $this->seen($this->start));
            }
            $this->buffer = substr($this->buffer, $this->start) . $more;
            $this->start = 0;
        }
        $length = unpack('N', $this->buffer, $this->start)[1];
        if ($length === 0 || $length > $this->maxFrame) {
            throw new LostStream("length $length is not in 1..{$this->maxFrame}; " . $this->seen($this->start));
        }
        $this->start += 4;
        return $length;
    }

    private function readPayload(int $length): string
    {
        $payload = substr($this->buffer, $this->start, $length);
        $this->start += strlen($payload);
        $missing = $length - strlen($payload);
        if ($missing > 0) {
            $this->flush();
            $this->buffer = '';
            $this->start = 0;
        }
        while ($missing > 0) {
            $more = $this->readSome(min($missing, 1 << 20));
            if ($more === '') {
                throw new LostStream('the requests ended inside a frame; ' . quote($payload));
            }
            $payload .= $more;
            $missing -= strlen($more);
        }
        return $payload;
    }

    private function readSome(int $length): string
    {
        do {
            $data = @fread($this->in, $length);
        } while (($data === '' || $data === false) && !feof($this->in));
        return (string) $data;
    }

    private function seen(int $start): string
    {
        return quote(substr($this->buffer, $start, 80));
    }

    /** Put one frame behind those that wait to be written together. */
    public function hold(string $payload): void
    {
        $head = pack('N', strlen($payload));
        if (strlen($payload) > CHUNK_BYTES) {
            $this->flush();
            $this->writeAll($head . substr($payload, 0, CHUNK_BYTES - 4));
            $this->writeAll($payload, CHUNK_BYTES - 4);
            return;
        }
        $this->held .= $head . $payload;
        if (strlen($this->held) > CHUNK_BYTES) {
            $this->flush();
        }
    }

    public function write(string $payload): void
    {
        $this->hold($payload);
        $this->flush();
    }

    public function writeBytes(string $data): void
    {
        for ($at = 0; $at < strlen($data); $at += $this->maxFrame) {
            $this->write(substr($data, $at, $this->maxFrame));
        }
    }

    public function flush(): void
    {
        if ($this->held !== '') {
            $held = $this->held;
            $this->held = ''; // first: a failure ends this process, which may have more to say
            $this->writeAll($held);
        }
    }

    private function writeAll(string $data, int $done = 0): void
    {
        if (Bridge::isChild()) {
            return; // it holds copies of what the parent writes
        }
        $size = strlen($data);
        while ($done < $size) {
            // A pipe takes no more at a time, and a shorter piece is a shorter copy.
            $done += $this->writeSome($done === 0 && $size <= 2 * CHUNK_BYTES ? $data : substr($data, $done, CHUNK_BYTES));
        }
    }

    /** Write a part, or wait until one can be written; end this process where no reply can be written any more. */
    private function writeSome(string $data): int
    {
        try {
            $count = @fwrite($this->out, $data);
        } catch (Throwable $thrown) {
            $count = false;
        }
        if ($count) {
            return $count;
        }
        // Once more for the reason: an error handler of user code may have thrown it, or kept it to itself.
        $reason = null;
        set_error_handler(static function (int $level, string $message) use (&$reason): bool {
            $reason = $message;
            return true;
        });
        $count = fwrite($this->out, $data);
        $isGone = $count === false && $reason !== null && !preg_match('/ errno=(?:4|11|35) /', $reason); // EINTR, EAGAIN
        if (!$count && !$isGone) {
            $none = null;
            $writable = [$this->out];
            stream_select($none, $writable, $none, null);
        }
        restore_error_handler();
        if ($isGone) {
            Bridge::leave(0);
        }
        return (int) $count;
    }
}

// -------------------------------------------------------------------------------------------------- strict JSON

function quote(string $bytes): string
{
    return 'bytes seen: "' . addcslashes(substr($bytes, 0, 80), "\0..\37\"\\\177..\377") . '"';
}

/** JSON as PHP values and back, without what json_decode and json_encode let pass. */
final class Json
{
    private const FLAGS = JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES | JSON_PRESERVE_ZERO_FRACTION | JSON_UNESCAPED_LINE_TERMINATORS;
    private const NOT_IN_TEXT = '"(?:[^"\\\\]++|\\\\.)*+"(*SKIP)(*FAIL)|';
    private const UTF8 = '/^(?:[\x00-\x7f]++|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}'
        . '|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})*+/';

    /**
     * Decode one message: objects become associative arrays, or an ArrayObject where an array would be a list.
     *
     * @return array{array, list<array{list<string>, string}>} the message, and path and digits of integers that PHP rounded
     */
    public static function decode(string $text): array
    {
        $value = json_decode($text, true, MAX_MESSAGE_DEPTH);
        if (json_last_error() !== JSON_ERROR_NONE) {
            throw new BadJson(json_last_error_msg());
        }
        if (self::occurs('/[:,\[]\s*+(?!true|false|null)(?i:true|false|null)/', $text)
            && self::occurs('/' . self::NOT_IN_TEXT . '\b(?!true|false|null)(?i:true|false|null)/s', $text)) {
            throw new BadJson('true, false and null are lower case');
        }
        $rounded = self::occurs('/\d{19}|[eE]\+?\d{3}/', $text) && self::checkNumbers($text) ? self::findRounded($value, $text) : [];
        if (self::occurs('/\{\s*+\}|"(?:0|\\\\u0030)"\s*+:/', $text)) {
            $value = self::decodeMarked($text);
        }
        return [$value, $rounded];
    }

    private static function occurs(string $pattern, string $text): bool
    {
        $found = preg_match($pattern, $text);
        return ($found === false ? self::patiently(static fn () => preg_match($pattern, $text)) : $found) === 1;
    }

    /**
     * The result of a search that may not end without one.
     *
     * PCRE gives up after a number of steps, which a long text may need more of where there is no JIT. The limits are
     * for patterns of user code, and stay.
     */
    private static function patiently(Closure $search): mixed
    {
        $result = $search();
        if (preg_last_error() !== PREG_NO_ERROR) {
            $limit = ini_set('pcre.backtrack_limit', '2147483647');
            $jit = ini_set('pcre.jit', '0'); // its stack is another limit
            $result = $search();
            ini_set('pcre.jit', $jit);
            ini_set('pcre.backtrack_limit', $limit);
            if (preg_last_error() !== PREG_NO_ERROR) {
                throw new BadJson(preg_last_error_msg());
            }
        }
        return $result;
    }

    /** Refuse numbers beyond a double's range; say whether an integer is beyond PHP's. */
    private static function checkNumbers(string $text): bool
    {
        $isRounded = false;
        $found = [];
        self::patiently(static function () use ($text, &$found) {
            preg_match_all('/' . self::NOT_IN_TEXT . '-?\d[-+.\deE]*+/s', $text, $found);
        });
        foreach ($found[0] as $literal) {
            if (strpbrk($literal, '.eE') !== false) {
                if (!is_finite((float) $literal)) {
                    throw new BadJson('number ' . substr($literal, 0, 80) . ' is out of range');
                }
            } elseif (strlen($literal) > 18 && !is_int(json_decode($literal))) {
                $isRounded = true;
            }
        }
        return $isRounded;
    }

    /** @return list<array{list<string>, string}> path and digits of each integer that has become a float */
    private static function findRounded(array $value, string $text): array
    {
        $found = [];
        self::compare($value, json_decode($text, true, MAX_MESSAGE_DEPTH, JSON_BIGINT_AS_STRING), [], $found);
        return $found;
    }

    private static function compare(mixed $value, mixed $exact, array $at, array &$found): void
    {
        if (is_array($value)) {
            foreach ($value as $key => $item) {
                if (is_array($item) || is_float($item)) {
                    self::compare($item, $exact[$key], [...$at, (string) $key], $found);
                }
            }
        } elseif (is_string($exact)) {
            $found[] = [$at, substr($exact, 0, 80)];
        }
    }

    /** Decode with a mark in each object, which tells {} from [] and {"0": 1} from [1]. */
    private static function decodeMarked(string $text): mixed
    {
        static $mark = null;
        $mark ??= bin2hex(random_bytes(16));
        $marked = self::patiently(static fn () => preg_replace_callback(
            '/' . self::NOT_IN_TEXT . '\{(\s*+\})?/s',
            static fn (array $found): string => isset($found[1]) ? "{\"$mark\":0}" : "{\"$mark\":0,",
            $text
        ));
        return self::unmark(json_decode($marked, true, MAX_MESSAGE_DEPTH), $mark);
    }

    private static function unmark(mixed $value, string $mark): mixed
    {
        if (!is_array($value)) {
            return $value;
        }
        $isObject = isset($value[$mark]);
        unset($value[$mark]);
        foreach ($value as $key => $item) {
            if (is_array($item)) {
                $value[$key] = self::unmark($item, $mark);
            }
        }
        return $isObject && self::isList($value) ? new ArrayObject($value) : $value;
    }

    public static function isList(array $value): bool
    {
        $next = 0;
        foreach ($value as $key => $_) {
            if ($key !== $next++) {
                return false;
            }
        }
        return true;
    }

    /**
     * Encode strictly; each Bytes leaves null in its place.
     *
     * @param array<string, string>|null $attachments gets pointer => bytes; null: bytes are refused
     */
    public static function encode(mixed $value, string $root, ?array &$attachments): string
    {
        if (self::isPlain($value, MAX_DEPTH)) {
            $text = json_encode($value, self::FLAGS, MAX_MESSAGE_DEPTH);
            if ($text !== false) {
                return $text;
            }
        }
        $text = json_encode(self::extract($value, $root, [], $attachments), self::FLAGS, MAX_MESSAGE_DEPTH);
        if ($text === false) {
            throw new EncodeError("$root: " . json_last_error_msg());
        }
        return $text;
    }

    /** Encode what is known to be fit. */
    public static function dump(mixed $value): string
    {
        return json_encode($value, self::FLAGS | JSON_INVALID_UTF8_SUBSTITUTE | JSON_THROW_ON_ERROR, MAX_MESSAGE_DEPTH);
    }

    private static function isPlain(mixed $value, int $depth): bool
    {
        if (is_array($value)) {
            if ($depth === 0) {
                return false;
            }
            foreach ($value as $item) {
                if (!is_scalar($item) && $item !== null && !self::isPlain($item, $depth - 1)) {
                    return false;
                }
            }
            return true;
        }
        return $value === null || is_scalar($value);
    }

    /** Copy `$value` with null for bytes, or throw with the path of the first thing that JSON cannot carry. */
    private static function extract(mixed $value, string $at, array $above, ?array &$attachments): mixed
    {
        if (is_string($value)) {
            self::checkText($value, $at);
            return $value;
        }
        if (is_float($value) && !is_finite($value)) {
            self::refuse($at, (is_nan($value) ? 'NaN' : ($value > 0 ? 'Infinity' : '-Infinity')) . ' is not JSON');
        }
        if ($value === null || is_scalar($value)) {
            return $value;
        }
        if ($value instanceof \Bytes) {
            if ($attachments === null) {
                self::refuse($at, 'Bytes cannot travel: the host takes no attachments');
            }
            $attachments["/$at"] = $value->data;
            return null;
        }
        if (is_object($value)) {
            if (in_array($value, $above, true)) {
                self::refuse($at, 'a cycle: the value contains itself');
            }
            if (!in_array(get_class($value), [stdClass::class, ArrayObject::class], true)) {
                self::refuse($at, get_class($value) . ' is not JSON; convert it to an array or an ArrayObject');
            }
        } elseif (!is_array($value)) {
            self::refuse($at, get_debug_type($value) . ' is not JSON');
        }
        if (count($above) >= MAX_DEPTH) {
            self::refuse($at, 'nested deeper than ' . MAX_DEPTH . ' levels');
        }
        $above[] = is_object($value) ? $value : null;
        $copy = [];
        foreach ((array) $value as $key => $item) {
            $key = (string) $key;
            self::checkText($key, $at);
            $copy[$key] = self::extract($item, "$at/" . self::token($key), $above, $attachments);
        }
        if (is_object($value) && self::isList($copy)) {
            return (object) $copy;
        }
        return $copy;
    }

    private static function checkText(string $text, string $at): void
    {
        if (preg_match('//u', $text)) {
            return;
        }
        $good = 0;
        while (preg_match(self::UTF8, substr($text, $good, 1 << 16), $found) && $found[0] !== '') {
            $good += strlen($found[0]);
        }
        if (preg_match('/\G\xed[\xa0-\xbf]/', $text, $found, 0, $good)) {
            $index = strlen(preg_replace('/[\x80-\xbf]++/', '', substr($text, 0, $good)));
            self::refuse($at, "text with a lone surrogate at index $index is not UTF-8");
        }
        self::refuse($at, "text that is not UTF-8 at byte $good; bytes travel as new Bytes(\$text)");
    }

    private static function refuse(string $at, string $reason): void
    {
        throw new EncodeError(self::clean(self::shorten($at) . ": $reason"));
    }

    /** A key as a part of a path. */
    private static function token(string $key): string
    {
        return str_replace(['~', '/'], ['~0', '~1'], $key);
    }

    /** @param list<string> $keys */
    public static function path(array $keys): string
    {
        return self::clean(self::shorten(implode('/', array_map([self::class, 'token'], $keys))));
    }

    private static function shorten(string $path): string
    {
        return strlen($path) > 200 ? substr(self::clean($path), 0, 197) . '...' : $path;
    }

    /** Text that is UTF-8, whatever it was. */
    public static function clean(string $text): string
    {
        return preg_match('//u', $text) ? $text : json_decode(json_encode($text, JSON_INVALID_UTF8_SUBSTITUTE));
    }

    public static function cap(string $text, int $limit = TEXT_CAP_BYTES): string
    {
        $text = self::clean($text);
        if (strlen($text) <= $limit) {
            return $text;
        }
        return json_decode(json_encode(substr($text, 0, $limit - 5), JSON_INVALID_UTF8_IGNORE)) . '[...]';
    }
}

// ------------------------------------------------------------------------------------------------------ running

/** One command: its function, and how args become its parameters. */
final class Command
{
    /** @var array<string, ReflectionParameter> without `$ctx` and the variadic one */
    public array $parameters = [];
    public string $doc = '';
    /** @var list<string> parameters declared as arrays, which an ArrayObject is not */
    private array $arrays = [];
    private bool $whole = false;
    private bool $isInternal = false;
    private ?string $variadic = null;
    private ?int $contextAt = null;

    public function __construct(public string $name, public Closure $function, private bool $raw = false)
    {
        $reflection = new ReflectionFunction($function);
        foreach ($reflection->getParameters() as $position => $parameter) {
            if ($parameter->getName() === 'ctx') {
                $this->contextAt = $position;
            } elseif ($parameter->isVariadic()) {
                $this->variadic = $parameter->getName();
            } else {
                $this->parameters[$parameter->getName()] = $parameter;
                if (preg_match('/\barray\b/', (string) $parameter->getType())) {
                    $this->arrays[] = $parameter->getName();
                }
            }
        }
        $this->whole = array_keys($this->parameters) === ['args'];
        $this->isInternal = $reflection->isInternal();
        $comment = (string) $reflection->getDocComment();
        $this->doc = trim(preg_replace('~^\s*/?\*+/?[ \t]?|\s*\*/$~m', '', $comment));
    }

    /** @return list<string> */
    public function names(): array
    {
        return $this->whole ? [] : array_keys($this->parameters);
    }

    public function call(mixed $args, Context $ctx): mixed
    {
        $bound = $this->raw ? ['args' => $args] : ($this->whole ? ['args' => $this->wholeArgs($args)] : $this->bind($args));
        foreach ($this->arrays as $name) {
            if (($bound[$name] ?? null) instanceof ArrayObject) {
                $bound[$name] = $bound[$name]->getArrayCopy();
            }
        }
        if ($this->contextAt !== null) {
            if (array_key_exists(0, $bound)) {
                array_splice($bound, $this->contextAt, 0, [$ctx]);
            } else {
                $bound['ctx'] = $ctx;
            }
        }
        try {
            return ($this->function)(...$bound);
        } catch (TypeError $error) {
            throw $this->refusalFor($error) ?? $error;
        }
    }

    /** What answers a TypeError of this very call; null for one that the handler raised. */
    private function refusalFor(TypeError $error): ?Refusal
    {
        $isOurCall = ($error->getTrace()[0]['file'] ?? '') === __FILE__;
        // Only PHP itself ends a message so; of an internal function it says neither this nor a place but the call.
        $isBinding = str_contains($error->getMessage(), ', called in ' . __FILE__) || ($this->isInternal && $error->getFile() === __FILE__);
        $pattern = '/Argument #\d+ (?:\(\$(\w+)\) )?(must be (?:(?!, called in ).)+ given)/';
        if (!$isOurCall || !$isBinding || !preg_match($pattern, $error->getMessage(), $found)) {
            return null;
        }
        $name = $found[1] !== '' ? $found[1] : $this->variadic;
        return bad_args("{$this->name}: '$name' {$found[2]}");
    }

    private function wholeArgs(mixed $args): mixed
    {
        if ($args !== null) {
            return $args;
        }
        $type = $this->parameters['args']->getType();
        return $type instanceof ReflectionNamedType && !$type->allowsNull() ? [] : null;
    }

    /** @return array<mixed> by name, or a list where the variadic parameter takes the last of it */
    private function bind(mixed $args): array
    {
        $unexpected = $missing = $reasons = [];
        $names = array_keys($this->parameters);
        $surplus = 0;
        if ($args instanceof ArrayObject || (is_array($args) && !Json::isList($args))) {
            $bound = (array) $args;
            foreach ($bound as $key => $_) {
                if (!isset($this->parameters[$key]) && ($this->variadic === null || $key === 'ctx' || is_int($key))) {
                    $unexpected[] = (string) $key;
                }
            }
        } else {
            $values = $args === null ? [] : (is_array($args) ? $args : [$args]);
            $surplus = count($values) - count($names);
            if ($surplus > 0 && $this->variadic !== null) {
                return $values;
            }
            $bound = array_combine(array_slice($names, 0, count($values)), array_slice($values, 0, count($names)));
        }
        foreach ($this->parameters as $name => $parameter) {
            if (!array_key_exists($name, $bound) && !$parameter->isOptional()) {
                $missing[] = $name;
            }
        }
        if ($missing === [] && $unexpected === [] && $surplus <= 0) {
            return $bound;
        }
        if ($missing !== []) {
            $reasons[] = "missing '" . implode("', '", $missing) . "'";
        }
        if ($unexpected !== []) {
            sort($unexpected, SORT_STRING);
            $reasons[] = "unexpected '" . implode("', '", $unexpected) . "'";
        }
        if ($surplus > 0) {
            $reasons[] = 'takes at most ' . count($names) . ' positional arguments, got ' . count($values);
        }
        throw bad_args("{$this->name}: " . implode('; ', $reasons) . "; signature: {$this->signature()}");
    }

    private function signature(): string
    {
        $shown = [];
        foreach ((new ReflectionFunction($this->function))->getParameters() as $parameter) {
            if ($parameter->getName() !== 'ctx') {
                $type = $parameter->hasType() ? "{$parameter->getType()} " : '';
                $default = $parameter->isDefaultValueAvailable() ? ' = ...' : '';
                $shown[] = $type . ($parameter->isVariadic() ? '...' : '') . "\${$parameter->getName()}$default";
            }
        }
        return "{$this->name}(" . implode(', ', $shown) . ')';
    }
}

/**
 * What a handler gets as `$ctx`.
 *
 * @property-read ArrayObject $state lives as long as the session on this worker; without one, as long as the request
 */
final class Context
{
    public ArrayObject $state;
    public ArrayObject $workerState;

    public function __construct(private Bridge $bridge, public ?int $requestId, public ?string $sessionId, public string $workerId, private ?float $until)
    {
        $this->state = $bridge->stateOf($sessionId);
        $this->workerState = $bridge->workerState;
    }

    /** Seconds left of the caller's time, never below 0; null without a limit. */
    public function deadline(): ?float
    {
        return $this->until === null ? null : max(0.0, $this->until - hrtime(true) / 1e9);
    }

    /** Send a log record to the host; after the request has ended, or without the capability: a line on stderr. */
    public function log(string $message, string $level = 'info', array|stdClass|ArrayObject $fields = []): void
    {
        $this->bridge->log($this, $message, $level, $fields);
    }
}

final class Bridge
{
    public ArrayObject $workerState;
    /** @var array<string, Command> */
    private array $commands = [];
    private ?Command $onStart = null;
    /** @var array<string, ArrayObject> */
    private array $sessions = [];
    /** @var array<string, true> capabilities that both sides named */
    private array $agreed = [];
    private int $level = 0;
    private int $requests = 0;
    private bool $started = false;
    private bool $loading = false;
    private ?Context $current = null;
    private float $startedAt;
    /** That of each call, as PHP's settings and the handler file have left it. */
    private string $timeLimit = '0';
    private string $workerId = 'unknown';
    private static ?self $instance = null;
    private static bool $leaving = false;
    private static int $owner = 0;

    private function __construct(private Stream $stream, private ?string $handlers)
    {
        $this->startedAt = microtime(true);
        $this->workerState = new ArrayObject();
        foreach (['ping', 'echo', 'compute', 'info'] as $name) {
            $this->commands[$name] = new Command($name, Closure::fromCallable([$this, $name]), true);
        }
    }

    /** @param list<string> $argv */
    public static function main(array $argv): void
    {
        ini_set('display_errors', 'stderr');
        ini_set('log_errors', '0');
        ini_set('html_errors', '0');
        ini_set('serialize_precision', '-1');
        ini_set('zend.exception_ignore_args', '1'); // a traceback with args may be as long as they are
        $handlers = self::parse($argv);
        if (function_exists('pcntl_signal')) {
            pcntl_signal(\SIGINT, \SIG_IGN);
        } elseif (libc() !== null) {
            libc()->signal(2, 1);
        }
        self::$owner = getmypid();
        set_error_handler(static function (int $level, string $message, string $file, int $line): bool {
            if (!(error_reporting() & $level)) {
                return false; // silenced with @; PHP keeps it for error_get_last()
            }
            if ($level & (E_DEPRECATED | E_USER_DEPRECATED)) {
                return false;
            }
            throw new ErrorException($message, 0, $level, $file, $line);
        });
        self::$instance = new self(Stream::open(), $handlers);
        register_shutdown_function(static fn () => self::$instance->afterEnd());
        self::leave(self::$instance->run());
    }

    /** End this process on purpose. */
    public static function leave(int $status): void
    {
        self::$leaving = true;
        exit($status);
    }

    /** @param list<string> $argv */
    private static function parse(array $argv): ?string
    {
        $handlers = null;
        for ($i = 1; $i < count($argv); $i++) {
            [$option, $value] = explode('=', $argv[$i], 2) + [1 => null];
            if ($option !== '--handlers' && $option !== '--mode') {
                usage("unknown option '{$argv[$i]}'; usage: snakepit_bridge.php [--handlers FILE]");
            }
            $value ??= $argv[++$i] ?? usage("$option needs a value");
            $handlers = $option === '--handlers' ? $value : $handlers;
        }
        return $handlers;
    }

    /** A handler called exit(), or PHP gave up: say so on stderr, with a status that is a crash. */
    private function afterEnd(): void
    {
        if (self::$leaving || self::isChild()) {
            return;
        }
        ini_set('memory_limit', '-1');
        $fatal = error_get_last();
        $isFatal = $fatal !== null && ($fatal['type'] & (E_ERROR | E_PARSE | E_CORE_ERROR | E_COMPILE_ERROR | E_USER_ERROR)) !== 0;
        $message = $isFatal ? "{$fatal['message']} in {$fatal['file']}:{$fatal['line']}" : 'the handler called exit()';
        // No reply: the host would send the next request to a process that is about to end.
        complain($isFatal ? "fatal error: $message" : $message);
        $this->stream->flush();
        self::leave($isFatal ? 255 : 1);
    }

    private function run(): int
    {
        try {
            while (($payload = $this->stream->read()) !== null) {
                $this->take($payload);
            }
            $this->stream->flush();
            return 0;
        } catch (LostStream $error) {
            $this->badFrame($error->getMessage(), null);
            return 2;
        }
    }

    private function take(string $payload): void
    {
        $received = hrtime(true) / 1e9;
        try {
            if ($payload[0] !== '{') {
                throw new BadJson('not an object');
            }
            [$message, $rounded] = Json::decode($payload);
            $message = (array) $message;
            if (!isset($message['command']) && isset($message['type'])) {
                if ($message['type'] === 'session_end' && is_string($message['session'] ?? null)) {
                    unset($this->sessions["s{$message['session']}"]);
                }
                return;
            }
            $id = $message['id'] ?? null;
            if (!is_int($id) || $id < 0 || $id > 2 ** 53 - 1) {
                $this->badFrame('no integer id from 0 to 2^53-1; ' . quote($payload), null);
                return;
            }
        } catch (BadJson $error) {
            $id = preg_match('/^\s*\{\s*"id"\s*:\s*(\d{1,16})\s*[,}]/', substr($payload, 0, 80), $found) ? (int) $found[1] : null;
            $this->badFrame($error->getMessage() . '; ' . quote($payload), $id);
            return;
        }
        unset($payload);
        $problems = [];
        foreach ($rounded as [$path, $digits]) {
            $isItem = $path[0] === 'batch' && count($path) > 1;
            $place = $isItem ? ['args', ...array_slice($path, 2)] : $path;
            $reason = "integer $digits is beyond 2^63-1 and would be rounded; send it as text";
            $problems[$isItem ? $path[1] : 'all'] ??= bad_args(Json::path($place) . ": $reason");
        }
        try {
            if (isset($message['attachments']) && $this->level > 0) {
                $this->attach($message);
            }
        } catch (Refusal $problem) {
            $problems['all'] ??= $problem;
        }
        if ($this->started) {
            $this->serve($id, $message, $received, $problems);
        } else {
            $this->start($id, $message, $problems);
        }
    }

    private function badFrame(string $reason, ?int $id): void
    {
        complain("bad frame: $reason");
        $this->sendError($id, null, 'internal', ['type' => 'BadFrame', 'message' => "bad frame: $reason"]);
    }

    /** Read the frames behind a message, and put their bytes in their places. */
    private function attach(array &$message): void
    {
        $problem = null;
        foreach (is_array($message['attachments']) ? $message['attachments'] : [[]] as $entry) {
            $length = is_array($entry) ? $entry['len'] ?? null : null;
            if (!is_int($length) || $length < 0) {
                throw new LostStream('an attachment without its length');
            }
            $data = $this->stream->readBytes($length);
            $path = $entry['path'] ?? null;
            $kind = $entry['kind'] ?? null;
            if ($kind !== 'bytes') {
                $problem ??= 'attachment: kind must be bytes, got ' . Json::dump($kind);
            } elseif (!is_string($path) || !self::put($message, $path, $data)) {
                $problem ??= 'attachment: no null at ' . Json::cap(Json::dump($path), 200);
            }
        }
        if ($problem !== null) {
            throw bad_args($problem);
        }
    }

    private static function put(array &$message, string $path, string $data): bool
    {
        $place = &$message;
        foreach (array_slice(explode('/', $path), 1) as $token) {
            $token = str_replace(['~1', '~0'], ['/', '~'], $token);
            if (is_array($place) && array_key_exists($token, $place)) {
                $place = &$place[$token];
            } elseif ($place instanceof ArrayObject && $place->offsetExists($token)) {
                $place = &$place[$token];
            } else {
                return false;
            }
        }
        if ($place !== null || $path === '') {
            return false;
        }
        $place = new \Bytes($data);
        return true;
    }

    /** @param array<Refusal> $problems by the item of a batch; 'all': of the whole request */
    private function serve(int $id, array $message, float $received, array $problems): void
    {
        $args = array_key_exists('args', $message) ? $message['args'] : new ArrayObject();
        $name = $message['command'] ?? null;
        $session = $until = $batch = null;
        $claim = false;
        if ($this->level > 0) {
            $session = $message['session'] ?? null;
            $until = $message['deadline_ms'] ?? null;
            $batch = $message['batch'] ?? null;
            $claim = ($message['claim'] ?? false) === true;
        }
        $isBatch = array_key_exists('batch', $message) && $this->level > 0;
        $problem = $problems['all'] ?? match (true) {
            $until !== null && !is_int($until) && !is_float($until) => bad_args("request $id: 'deadline_ms' must be a number"),
            $session !== null && !is_string($session) => bad_args("request $id: 'session' must be a string"),
            $isBatch && !(is_array($batch) && Json::isList($batch)) => bad_args("request $id: 'batch' must be an array"),
            $isBatch && $batch === [] => bad_args("request $id: 'batch' must not be empty"),
            $claim && !$this->stream->canClaim() => new Refusal('internal', 'ProtocolError', 'claim: this worker has no SNAKEPIT_CLAIM_FD'),
            !is_string($name) => bad_args("request $id: 'command' must be a string"),
            !isset($this->commands[$name]) => new Refusal('unknown_command', 'UnknownCommand', "Unknown command: '$name'. Available: " . implode(', ', $this->commandNames())),
            default => null,
        };
        $isBatch = $isBatch && is_array($batch) && Json::isList($batch) && $batch !== [];
        $claim = $claim && $this->stream->canClaim();
        $since = 0.0;
        foreach ($isBatch ? $batch : [$args] as $item => $itemArgs) {
            $index = $isBatch ? $item : null;
            if ($claim && !$this->stream->claimed()) {
                $this->stream->hold(self::head($id, $index, '{"type":"recalled","id":') . '}');
                continue;
            }
            $now = $isBatch ? hrtime(true) / 1e9 : INF;
            if ($now - $since > BATCH_WAIT_S) {
                $this->stream->flush();
                $since = $now;
            }
            $this->requests++;
            if ($problem !== null || isset($problems[$item])) {
                $this->sendThrown($id, $index, $problem ?? $problems[$item]);
                continue;
            }
            $context = new Context($this, $id, $session, $this->workerId, $until === null ? null : $received + $until / 1000);
            $this->current = $context;
            try {
                $result = $this->commands[$name]->call($itemArgs, $context);
            } catch (Throwable $error) {
                $this->afterCall();
                $this->current = null;
                $this->sendThrown($id, $index, $error);
                continue;
            }
            $this->afterCall();
            $this->current = null;
            $this->sendResult($id, $index, $result);
        }
        if ($isBatch) {
            $this->stream->flush();
        }
    }

    /** Whether this process is one that a handler forked: the stream belongs to its parent alone. */
    public static function isChild(): bool
    {
        return getmypid() !== self::$owner;
    }

    /** End a child that comes back from user code; undo a time limit that is not for the calls to come. */
    private function afterCall(): void
    {
        if (self::isChild()) {
            self::leave(0);
        }
        if (ini_get('max_execution_time') !== '0') {
            ini_set('max_execution_time', $this->timeLimit); // also begins it anew
        }
    }

    public function stateOf(?string $session): ArrayObject
    {
        // The prefix keeps PHP from making a number of the key.
        return $session === null ? new ArrayObject() : $this->sessions["s$session"] ??= new ArrayObject();
    }

    public function log(Context $context, string $message, string $level, array|stdClass|ArrayObject $fields): void
    {
        $none = null;
        try {
            $body = Json::encode((object) (array) $fields, 'fields', $none);
        } catch (EncodeError $error) {
            $body = Json::dump(['encode_error' => $error->getMessage()]);
        }
        $message = Json::cap($message);
        if ($this->started && $this->current === $context && isset($this->agreed['log']) && !self::isChild()) {
            $words = '"level":' . Json::dump($level) . ',"message":' . Json::dump($message);
            $frame = "{\"type\":\"log\",\"id\":{$context->requestId},$words,\"fields\":$body}";
            if (strlen($frame) <= $this->stream->maxFrame) {
                $this->stream->write($frame);
                return;
            }
        }
        complain("$level: $message" . ($body === '{}' ? '' : " $body"));
    }

    // ---------------------------------------------------------------------------------------------------- replies

    private static function head(?int $id, ?int $index, string $start = '{"id":'): string
    {
        return $start . ($id ?? 'null') . ($index === null ? '' : ",\"index\":$index");
    }

    private function tail(): string
    {
        return $this->level > 0 ? '}' : ',"timestamp":"' . gmdate('Y-m-d\TH:i:s.') . sprintf('%03d', (int) (fmod(microtime(true), 1) * 1000)) . 'Z"}';
    }

    private function put_frame(string $frame, ?int $index): bool
    {
        if (strlen($frame) > $this->stream->maxFrame) {
            return false;
        }
        $this->stream->hold($frame);
        if ($index === null) {
            $this->stream->flush();
        }
        return true;
    }

    private function sendResult(int $id, ?int $index, mixed $result): void
    {
        $attachments = isset($this->agreed['attachments']) ? [] : null;
        try {
            $text = Json::encode($result, 'result', $attachments);
        } catch (EncodeError $error) {
            $this->sendError($id, $index, 'encode_error', ['type' => 'EncodeError', 'message' => $error->getMessage()]);
            return;
        }
        $listed = '';
        if ($attachments) {
            $entries = [];
            foreach ($attachments as $path => $data) {
                $entries[] = ['path' => (string) $path, 'kind' => 'bytes', 'len' => strlen($data)];
            }
            $listed = ',"attachments":' . Json::dump($entries);
        }
        $frame = self::head($id, $index) . ",\"success\":true,\"result\":$text$listed" . $this->tail();
        if (!$this->put_frame($frame, $index)) {
            $this->sendError($id, $index, 'too_large', [
                'type' => 'ResultTooLarge',
                'message' => 'the encoded reply has ' . strlen($frame) . " bytes; the limit is {$this->stream->maxFrame} (max_frame)",
            ]);
            return;
        }
        foreach ($attachments ?? [] as $data) {
            $this->stream->writeBytes($data);
        }
    }

    private function sendThrown(int $id, ?int $index, Throwable $error): void
    {
        if ($error instanceof Refusal) {
            $this->sendError($id, $index, $error->errorCode, ['type' => $error->type, 'message' => Json::cap($error->getMessage())]);
        } else {
            $this->sendError($id, $index, 'handler_error', self::describe($error));
        }
    }

    /** @return list<array<string, mixed>> the calls that led to an error, without those that the bridge made */
    private static function userCalls(Throwable $error): array
    {
        $isOurs = static fn (array $call): bool => ($call['file'] ?? '') === __FILE__
            || (str_contains($call['function'], '{closure') && str_contains($call['function'], __NAMESPACE__ . '\\'));
        return array_values(array_filter($error->getTrace(), static fn (array $call): bool => !$isOurs($call)));
    }

    private static function typeName(Throwable $error): string
    {
        $name = (new ReflectionClass($error))->getShortName();
        return Json::clean(explode("\0", $name)[0]);
    }

    /** @return array<string, mixed> */
    private static function describe(Throwable $error): array
    {
        $type = self::typeName($error);
        $message = $error->getMessage() === '' ? $type : $error->getMessage();
        $calls = self::userCalls($error);
        $place = ['file' => $error->getFile(), 'line' => $error->getLine()];
        if ($place['file'] === __FILE__) {
            $place = $calls[0] ?? []; // a refusal of the bridge stands where it was called
        }
        $where = isset($place['file']) ? " in {$place['file']}:{$place['line']}" : '';
        $traceback = "$type: " . Json::cap($message, TEXT_CAP_BYTES >> 1) . $where;
        foreach ($calls as $number => $call) {
            $site = isset($call['file']) ? "{$call['file']}({$call['line']})" : '[internal function]';
            $traceback .= "\n#$number $site: " . ($call['class'] ?? '') . ($call['type'] ?? '') . "{$call['function']}()";
            if (strlen($traceback) > TEXT_CAP_BYTES) {
                break;
            }
        }
        $about = [
            'type' => $type,
            'message' => Json::cap($error instanceof \ParseError ? $message . $where : $message),
            'traceback' => Json::cap($traceback),
        ];
        $data = get_object_vars($error)['data'] ?? null;
        if ($data !== null) {
            try {
                $none = null;
                Json::encode($data, 'data', $none);
                $about['data'] = $data;
            } catch (EncodeError $refused) {
                // `data` is an extra; what cannot be sent of it must not hide the error itself.
            }
        }
        $cause = $error->getPrevious();
        if ($cause !== null) {
            $name = self::typeName($cause);
            $about['cause'] = ['type' => $name, 'message' => Json::cap($cause->getMessage() === '' ? $name : $cause->getMessage())];
        }
        return $about;
    }

    private function sendError(?int $id, ?int $index, string $code, array $about): void
    {
        $short = Json::cap($about['message'], max(16, $this->stream->maxFrame >> 3));
        $write = fn (mixed $error): bool => $this->put_frame(
            self::head($id, $index) . ',"success":false,"error":' . Json::dump($error) . $this->tail(),
            $index
        );
        if (!isset($this->agreed['errors'])) {
            $write($about['message']) || $write($short);
            return;
        }
        $about = ['code' => $code] + $about + ['traceback' => null, 'language' => 'php'];
        $write($about)
            || $write(['code' => $code, 'type' => $about['type'], 'message' => $short, 'traceback' => null, 'language' => 'php']);
    }

    // ------------------------------------------------------------------------------------------------------ start

    /** Negotiate, load the handlers, run their start function, and only then answer the first request. */
    private function start(int $id, array $message, array $problems): void
    {
        $args = (array) ($message['args'] ?? []);
        $isPing = ($message['command'] ?? null) === 'ping';
        $offer = $args['protocol'] ?? null;
        $offered = $isPing && is_array($offer) && is_array($offer['versions'] ?? null) && in_array(1, $offer['versions'], true);
        if ($offered) {
            $this->negotiate($offer);
        }
        if (is_string($args['worker_id'] ?? null)) {
            $this->workerId = $args['worker_id'];
        }
        $this->current = $context = new Context($this, $id, null, $this->workerId, null);
        try {
            if (isset($problems['all'])) {
                throw $problems['all'];
            }
            $this->load($isPing ? $args['start_args'] ?? null : null, $context);
        } catch (Throwable $error) {
            $this->current = null;
            complain('could not start: ' . ($error instanceof Refusal ? $error->getMessage() : self::describe($error)['traceback']));
            $this->sendThrown($id, null, $error);
            self::leave(1);
        }
        $this->timeLimit = ini_get('max_execution_time');
        $this->afterCall();
        $this->current = null;
        $this->started = true;
        if ($offered) {
            $this->requests++;
            $this->sendResult($id, null, $this->ping($message['args']) + ['protocol' => $this->handshake()]);
        } else {
            $this->serve($id, $message, hrtime(true) / 1e9, $problems);
        }
    }

    private function negotiate(array $offer): void
    {
        $this->level = 1;
        $limit = $offer['max_frame'] ?? null;
        if (is_int($limit) && $limit > 0) {
            $this->stream->maxFrame = min($limit, LARGEST_MAX_FRAME);
        }
        $ours = ['errors', 'pipeline', 'session', 'deadline', 'attachments', 'batch', 'log'];
        if ($this->stream->canClaim()) {
            $ours[] = 'claim';
        }
        $theirs = is_array($offer['capabilities'] ?? null) ? $offer['capabilities'] : [];
        foreach ($ours as $name) {
            if (in_array($name, $theirs, true)) {
                $this->agreed[$name] = true;
            }
        }
    }

    private function handshake(): array
    {
        $commands = [];
        foreach ($this->commandNames() as $name) {
            $command = $this->commands[$name];
            $commands[$name] = ['params' => $name === 'compute' && $command->names() === [] ? ['operation', 'a', 'b'] : $command->names(), 'doc' => Json::cap($command->doc, 4096)];
        }
        return [
            'version' => 1,
            'max_frame' => $this->stream->maxFrame,
            'capabilities' => array_keys($this->agreed),
            'language' => 'php',
            'runtime' => PHP_VERSION,
            'bridge' => BRIDGE_VERSION,
            'pid' => getmypid(),
            'commands' => (object) $commands,
        ];
    }

    private function load(mixed $startArgs, Context $context): void
    {
        if ($this->handlers !== null) {
            $file = realpath($this->handlers);
            if ($file === false || !is_file($file)) {
                throw new \RuntimeException("handler file {$this->handlers} does not exist");
            }
            $code = (string) file_get_contents($file);
            $isCode = preg_match('/<\?(?:php\b|=)/i', $code) || (ini_get('short_open_tag') && str_contains($code, '<?'));
            if (!$isCode && trim($code) !== '') {
                throw new \RuntimeException("handler file {$this->handlers} has no <?php: PHP would print its text and run nothing");
            }
            $this->loading = true;
            load_file($file);
            $this->loading = false;
        }
        if ($this->onStart !== null) {
            $this->onStart->call($startArgs, $context);
        } elseif ($startArgs !== null) {
            throw bad_args('start_args were given, but the handlers have no on_start function');
        }
    }

    public static function register(string $name, callable $function): void
    {
        $bridge = self::needLoading('command');
        $known = $bridge->commands[$name] ?? null;
        if ($name === 'ping') {
            throw new \LogicException("command 'ping' belongs to the bridge; choose another name");
        }
        if ($known !== null && !in_array($name, $bridge->replaceable, true)) {
            throw new \LogicException("command '$name' is registered twice");
        }
        $bridge->replaceable = array_diff($bridge->replaceable, [$name]);
        $bridge->commands[$name] = new Command($name, Closure::fromCallable($function));
    }

    public static function registerStart(callable $function): void
    {
        $bridge = self::needLoading('on_start');
        if ($bridge->onStart !== null) {
            throw new \LogicException('on_start is registered twice');
        }
        $bridge->onStart = new Command('on_start', Closure::fromCallable($function));
    }

    /** @var array<string> built-in commands that a handler file has not replaced yet */
    private array $replaceable = ['echo', 'compute', 'info'];

    private static function needLoading(string $function): self
    {
        if (self::$instance === null || !self::$instance->loading) {
            throw new \LogicException("$function() is for the time while the handler file is loaded");
        }
        return self::$instance;
    }

    // -------------------------------------------------------------------------------------------------- built-ins

    /** @return list<string> */
    private function commandNames(): array
    {
        $names = array_map('strval', array_keys($this->commands));
        sort($names, SORT_STRING);
        return $names;
    }

    /** Tell that the worker is well. */
    private function ping(mixed $args): array
    {
        $echo = $args;
        if (is_array($echo) && !Json::isList($echo)) {
            unset($echo['protocol'], $echo['start_args'], $echo['prepare']); // the handshake's own words
            $echo = $echo === [] ? new stdClass() : $echo;
        }
        return [
            'status' => 'ok',
            'bridge_type' => 'generic_php',
            'uptime' => microtime(true) - $this->startedAt,
            'requests_handled' => $this->requests,
            'timestamp' => microtime(true),
            'php_version' => PHP_VERSION,
            'worker_id' => is_array($args) && is_string($args['worker_id'] ?? null) ? $args['worker_id'] : $this->workerId,
            'echo' => $echo,
        ];
    }

    /** Return the args as they came. */
    private function echo(mixed $args): array
    {
        return ['status' => 'ok', 'echoed' => $args, 'timestamp' => microtime(true)];
    }

    /** Add, subtract, multiply or divide. */
    private function compute(mixed $args): array
    {
        if (!$args instanceof ArrayObject && (!is_array($args) || Json::isList($args))) {
            throw bad_args('compute: args must be an object');
        }
        $args = (array) $args;
        foreach (['operation', 'a', 'b'] as $field) {
            if (!array_key_exists($field, $args)) {
                throw bad_args("compute: missing field '$field'");
            }
        }
        ['operation' => $operation, 'a' => $a, 'b' => $b] = $args;
        if (!in_array($operation, ['add', 'divide', 'multiply', 'subtract'], true)) {
            $shown = Json::cap(is_string($operation) ? $operation : Json::dump($operation), 200);
            throw bad_args("compute: unknown operation '$shown'; one of add, divide, multiply, subtract");
        }
        foreach (['a', 'b'] as $field) {
            if (!is_int($args[$field]) && !is_float($args[$field])) {
                throw bad_args("compute: field '$field' must be a number");
            }
        }
        if ($operation === 'divide' && $b == 0) {
            throw bad_args('compute: division by zero');
        }
        $result = match ($operation) {
            'add' => $a + $b,
            'subtract' => $a - $b,
            'multiply' => $a * $b,
            'divide' => $a / $b,
        };
        if (!is_finite($result)) {
            throw bad_args('compute: result is not a finite number');
        }
        return ['status' => 'ok', 'operation' => $operation, 'inputs' => ['a' => $a, 'b' => $b], 'result' => $result, 'timestamp' => microtime(true)];
    }

    /** Describe the bridge and its system. */
    private function info(mixed $args): array
    {
        return [
            'status' => 'ok',
            'bridge_info' => [
                'name' => 'Generic Snakepit PHP Bridge',
                'version' => BRIDGE_VERSION,
                'supported_commands' => $this->commandNames(),
                'uptime' => microtime(true) - $this->startedAt,
                'total_requests' => $this->requests,
            ],
            'system_info' => ['php_version' => PHP_VERSION, 'platform' => PHP_OS_FAMILY, 'arch' => php_uname('m'), 'memory_usage' => memory_get_usage(true)],
            'timestamp' => microtime(true),
        ];
    }
}

}

namespace {

/** Bytes in args and results: text in PHP is bytes as well, so what is not text must say so. */
final class Bytes implements Countable
{
    public function __construct(public string $data)
    {
    }

    public function __toString(): string
    {
        return $this->data;
    }

    public function count(): int
    {
        return strlen($this->data);
    }
}

/** Register a function under a name that the host calls. */
function command(string $name, callable $function): void
{
    Snakepit\Bridge::register($name, $function);
}

/** Register the function that runs once, before the first request. */
function on_start(callable $function): void
{
    Snakepit\Bridge::registerStart($function);
}

Snakepit\Bridge::main($argv);

}
