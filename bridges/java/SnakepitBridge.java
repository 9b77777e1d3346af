/**
 * Snakepit's Java bridge: answers one host's framed requests, in order, with annotated methods.
 *
 * Started by launch.sh as {@code java -cp ... snakepit.SnakepitBridge [--handlers NAME]}, where NAME is a .java
 * file, a jar, or classes on the class path; Java 17 or newer, the JDK alone.  Handlers run on the main thread; one
 * further thread reads ahead while a handler is slow.  The normative text is PROTOCOL.md, one folder up.
 */
package snakepit;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;
import java.lang.reflect.Array;
import java.lang.reflect.Constructor;
import java.lang.reflect.GenericArrayType;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.Parameter;
import java.lang.reflect.ParameterizedType;
import java.lang.reflect.Type;
import java.lang.reflect.WildcardType;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.net.URI;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.jar.JarEntry;
import java.util.jar.JarFile;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.tools.Diagnostic;
import javax.tools.DiagnosticCollector;
import javax.tools.FileObject;
import javax.tools.ForwardingJavaFileManager;
import javax.tools.JavaCompiler;
import javax.tools.JavaFileManager;
import javax.tools.JavaFileObject;
import javax.tools.SimpleJavaFileObject;
import javax.tools.ToolProvider;

/** What handlers see of the bridge, and its start. */
public final class SnakepitBridge {
    static final String VERSION = "1.0";
    static final int DEFAULT_MAX_FRAME = 64 << 20;
    static final int LARGEST_MAX_FRAME = (128 << 20) - 1; // from 128 MiB on, leaked text could be a length
    static final int CHUNK_BYTES = 64 << 10; // what a Linux pipe holds
    private static final Runtime RUNTIME = Runtime.getRuntime(); // to halt where no memory is left to load classes

    /** Makes a method a command, named like the method or as said. */
    @Retention(RetentionPolicy.RUNTIME)
    @Target(ElementType.METHOD)
    public @interface Command {
        String value() default "";

        String doc() default "";
    }

    /** Runs a method before the worker is ready; it receives the adapter's {@code start_args}. */
    @Retention(RetentionPolicy.RUNTIME)
    @Target(ElementType.METHOD)
    public @interface OnStart {}

    /** What a handler may know about its request and keep for later ones. */
    public interface Context {
        /** The session of the request, or null. */
        String sessionId();

        String workerId();

        /** Seconds left of the caller's time, never below 0; null without a limit. */
        Double deadline();

        /** Lives as long as the session on this worker; without a session, as long as the request. */
        Map<String, Object> state();

        /** Lives as long as the worker. */
        Map<String, Object> workerState();

        /** Send a log record to the host, from any thread; after the request has ended it goes to stderr. */
        void log(String message, String level, Map<String, ?> fields);

        default void log(String message, String level) {
            log(message, level, Map.of());
        }

        default void log(String message) {
            log(message, "info", Map.of());
        }
    }

    private SnakepitBridge() {}

    public static void main(String[] argv) {
        String handlers = null;
        for (int i = 0; i < argv.length; i++) {
            int equals = argv[i].indexOf('=');
            String option = equals < 0 ? argv[i] : argv[i].substring(0, equals);
            if (!option.equals("--handlers") && !option.equals("--mode")) usage("unknown option '" + argv[i] + "'");
            if (equals < 0 && ++i == argv.length) usage("option " + option + " needs a value");
            String value = equals < 0 ? argv[i] : argv[i].substring(equals + 1);
            if (option.equals("--handlers")) handlers = value;
        }
        Worker worker = null;
        try {
            Descriptors.ignoreSignals();
            worker = new Worker(Descriptors.open(), handlers);
        } catch (IOException | IllegalArgumentException error) {
            usage(Errors.text(error));
        }
        try {
            Class.forName("java.lang.Shutdown"); // as for RUNTIME
            System.exit(worker.run());
        } catch (Throwable error) {
            fail(error);
        }
    }

    /** End at once what cannot go on: threads of the handlers would keep a process alive that serves nobody. */
    static void fail(Throwable error) {
        try {
            complain("the bridge cannot go on: " + Errors.type(error) + ": " + Errors.text(error));
        } finally {
            RUNTIME.halt(70); // EX_SOFTWARE
        }
    }

    private static void usage(String problem) {
        complain(problem + "; usage: SnakepitBridge [--handlers FILE_OR_CLASSES] [--mode ANYTHING]");
        Runtime.getRuntime().halt(2);
    }

    /** Write one line to stderr, in one write, whatever has become of System.err. */
    static void complain(String line) {
        try {
            byte[] bytes = ("snakepit_bridge: " + line + "\n").getBytes(StandardCharsets.UTF_8);
            new FileOutputStream(FileDescriptor.err).write(bytes);
        } catch (IOException closed) {
            return; // nobody is left to tell
        }
    }
}

/** A request is answered with this error without a traceback: the reply says it all. */
@SuppressWarnings("serial")
final class Refusal extends RuntimeException {
    final String code;
    final String type;

    Refusal(String code, String type, String message) {
        super(message, null, false, false);
        this.code = code;
        this.type = type;
    }

    static Refusal badArgs(String message) {
        return new Refusal("bad_args", "InvalidArguments", message);
    }
}

/** The request stream cannot be followed any further: a bad length, or an end inside a frame. */
@SuppressWarnings("serial")
final class FramingError extends Exception {
    FramingError(String message) {
        super(message, null, false, false);
    }
}

/** A payload that is not strict JSON. */
@SuppressWarnings("serial")
final class BadJson extends Exception {
    BadJson(String message) {
        super(message, null, false, false);
    }
}

// ---------------------------------------------------------------------------------------------- descriptors

/** The descriptors of the frames, as the launcher or the environment names them. */
final class Descriptors {
    final InputStream requests;
    final OutputStream replies;
    final InputStream claims; // null: none was given, or it cannot be read without blocking

    private Descriptors(InputStream requests, OutputStream replies, InputStream claims) {
        this.requests = requests;
        this.replies = replies;
        this.claims = claims;
    }

    static Descriptors open() throws IOException {
        String names = named("snakepit.fds", "SNAKEPIT_FDS");
        String claim = named("snakepit.claim", "SNAKEPIT_CLAIM_FD");
        InputStream requests;
        OutputStream replies;
        if (names == null) {
            // Without the launcher only what Java itself reads and prints can be kept off the stream.
            requests = new FileInputStream(FileDescriptor.in);
            replies = new FileOutputStream(FileDescriptor.out);
            System.setIn(InputStream.nullInputStream());
            System.setOut(System.err);
        } else {
            int comma = names.indexOf(',');
            int in = number(names, 0, Math.max(comma, 0));
            int out = number(names, comma + 1, names.length());
            FileDescriptor source = inherited(in);
            FileDescriptor target = inherited(out);
            requests = source == null ? new FileInputStream("/dev/fd/" + in) : new FileInputStream(source);
            replies = target == null ? new FileOutputStream("/dev/fd/" + out) : new FileOutputStream(target);
        }
        FileDescriptor source = claim == null ? null : inherited(number(claim, 0, claim.length()));
        return new Descriptors(requests, replies, source == null ? null : new FileInputStream(source));
    }

    private static String named(String property, String variable) {
        String value = System.getProperty(property);
        return value == null || value.isEmpty() ? System.getenv(variable) : value;
    }

    private static int number(String names, int from, int to) {
        try {
            return Integer.parseInt(names.substring(from, to));
        } catch (NumberFormatException error) {
            throw new IllegalArgumentException("SNAKEPIT_FDS is 'in,out', two numbers, not '" + names + "'");
        }
    }

    /**
     * The descriptor of a number itself; null where this Java does not allow that.
     *
     * Opening /dev/fd/N instead makes a new description, which fails for a socket and blocks where the pipe of
     * the claims must not.
     */
    private static FileDescriptor inherited(int number) {
        try {
            Constructor<FileDescriptor> constructor = FileDescriptor.class.getDeclaredConstructor(int.class);
            // With --add-opens java.base/java.io=ALL-UNNAMED, which costs a third of the JVM's start.
            if (constructor.trySetAccessible()) return constructor.newInstance(number);
            return Numbered.descriptor(number);
        } catch (ReflectiveOperationException | LinkageError | UnsupportedOperationException error) {
            return null;
        }
    }

    @SuppressWarnings({"removal", "sunapi"})
    private static final class Numbered {
        static FileDescriptor descriptor(int number) throws ReflectiveOperationException {
            java.lang.reflect.Field field = sun.misc.Unsafe.class.getDeclaredField("theUnsafe");
            field.setAccessible(true);
            sun.misc.Unsafe unsafe = (sun.misc.Unsafe) field.get(null);
            FileDescriptor made = new FileDescriptor();
            unsafe.putInt(made, unsafe.objectFieldOffset(FileDescriptor.class.getDeclaredField("fd")), number);
            return made;
        }
    }

    /** SIGINT is the host's business; SIGTERM ends the process itself, not by way of the JVM's exit. */
    @SuppressWarnings("sunapi")
    static void ignoreSignals() {
        try {
            sun.misc.Signal.handle(new sun.misc.Signal("INT"), sun.misc.SignalHandler.SIG_IGN);
            sun.misc.Signal.handle(new sun.misc.Signal("TERM"), sun.misc.SignalHandler.SIG_DFL);
        } catch (IllegalArgumentException | LinkageError error) {
            return; // with -Xrs the JVM leaves both alone, and the launcher has ignored the first
        }
    }
}

// --------------------------------------------------------------------------------------------------- frames

/** Frames from the host: many from one system call, each of them exactly. */
final class Input implements Runnable {
    private static final int AHEAD_BYTES = 16 << 20; // arbitrary: bounds what a slow handler lets the host buffer here
    private static final long SLOW_MS = 100; // arbitrary: a request that runs for longer has the watcher read ahead
    private static final long GRACE_MS = 250; // arbitrary: lets a reply that is nearly done leave

    volatile int maxFrame = SnakepitBridge.DEFAULT_MAX_FRAME;
    // The payload read last: data[from..to), valid until the next one is read, or a handler begins.
    byte[] data;
    int from;
    int to;

    private final InputStream in;
    // LOCK: `this` guards all below.  The main thread holds it while it waits for the pipe, the watcher does not.
    private byte[] buffer = new byte[SnakepitBridge.CHUNK_BYTES];
    private int start;
    private int end;
    private boolean ended;
    private boolean ahead; // the watcher waits for the pipe: nobody else may read it
    private boolean parked; // the watcher waits for a request to begin
    private long busySince; // System.nanoTime(), 0 while no handler runs
    private boolean finished;
    private Thread watcher;

    Input(InputStream in) {
        this.in = in;
    }

    /** Say whether the next payload can be read without waiting. */
    synchronized boolean hasFrame() {
        return end - start >= 4 && end - start - 4 >= (ByteBuffer.wrap(buffer).getInt(start) & 0xffffffffL);
    }

    /** Read the next payload; false at the end of the stream. */
    synchronized boolean readFrame() throws IOException, FramingError {
        int size = readLength();
        if (size < 0) return false;
        if (size <= buffer.length && require(size) >= size) {
            data = buffer;
            from = start;
            to = start += size;
        } else {
            data = new byte[size];
            from = 0;
            to = size;
            readFully(data, 0, size);
        }
        return true;
    }

    /** Read the payloads of the next frames, all of which are full but the last. */
    synchronized void readRaw(byte[] target) throws IOException, FramingError {
        for (int at = 0; at < target.length; ) {
            int due = Math.min(maxFrame, target.length - at);
            int size = readLength();
            if (size != due) {
                String got = size < 0 ? "the end of the stream" : "a frame of " + size;
                throw new FramingError("attachment: a frame of " + due + " bytes was due, got " + got);
            }
            readFully(target, at, at + size);
            at += size;
        }
    }

    private int readLength() throws IOException, FramingError {
        int available = require(4);
        if (available == 0) return -1;
        if (available < 4) throw new FramingError("the request stream ended inside a length");
        long size = ByteBuffer.wrap(buffer).getInt(start) & 0xffffffffL;
        if (size < 1 || size > maxFrame) {
            String seen = Errors.escape(buffer, start, end);
            throw new FramingError("length " + size + " is not in 1.." + maxFrame + "; bytes seen: " + seen);
        }
        start += 4;
        return (int) size;
    }

    /** Have `count` bytes in the buffer; returns how many there are, fewer only at the end of the stream. */
    private int require(int count) throws IOException {
        while (end - start < count && !ended) {
            if (ahead) {
                await();
                continue;
            }
            if (start > 0 && (start == end || buffer.length - start < count)) {
                System.arraycopy(buffer, start, buffer, 0, end - start);
                end -= start;
                start = 0;
            }
            int room = Math.min(buffer.length - end, SnakepitBridge.CHUNK_BYTES);
            int read = in.read(buffer, end, room);
            if (read < 0) ended = true;
            else end += read;
        }
        return end - start;
    }

    private void readFully(byte[] target, int at, int until) throws IOException, FramingError {
        int size = until - at;
        while (at < until) {
            int count = Math.min(end - start, until - at);
            if (count > 0) {
                System.arraycopy(buffer, start, target, at, count);
                start += count;
            } else if (ahead) {
                await();
            } else {
                // The JDK copies by way of memory as large as what is asked for.
                count = ended ? -1 : in.read(target, at, Math.min(until - at, SnakepitBridge.CHUNK_BYTES));
                if (count < 0) {
                    String place = (size - (until - at)) + " of a frame's " + size + " bytes";
                    throw new FramingError("the request stream ended after " + place);
                }
            }
            at += count;
        }
    }

    private void await() {
        try {
            wait();
        } catch (InterruptedException leftByHandler) {
            return;
        }
    }

    /** A handler begins; from now on the payload read last is gone. */
    synchronized void begin() {
        data = null;
        busySince = System.nanoTime();
        if (watcher == null) {
            watcher = new Thread(this, "snakepit-watcher");
            watcher.setDaemon(true);
            watcher.start();
        } else if (parked) notifyAll();
    }

    synchronized void end() {
        busySince = 0;
    }

    synchronized void finish() {
        finished = true;
    }

    /** THREAD: the watcher. Reads while a handler is slow, so that the end of the requests is seen. */
    @Override
    public void run() {
        byte[] chunk = new byte[4096];
        try {
            while (!isFinished()) {
                awaitSlowRequest();
                int read = in.read(chunk);
                if (!append(chunk, read)) break;
            }
            Thread.sleep(GRACE_MS);
        } catch (IOException | InterruptedException error) {
            return; // the main thread will meet the same
        } catch (Error error) {
            SnakepitBridge.fail(error); // what was read is lost
        }
        if (!isFinished()) Runtime.getRuntime().halt(0);
    }

    private synchronized boolean isFinished() {
        return finished;
    }

    private synchronized void awaitSlowRequest() throws InterruptedException {
        while (true) {
            boolean full = end - start > AHEAD_BYTES;
            long left = busySince == 0 || full ? -1 : SLOW_MS - (System.nanoTime() - busySince) / 1_000_000;
            if (left < 0 && busySince != 0 && !full || left == 0) break;
            parked = left < 0;
            wait(Math.max(left, 0));
            parked = false;
        }
        // RACE: 1. the watcher finds a slow request  2. its handler ends  3. the main thread wants the next
        // request.  The flag, set under the lock, makes it wait for what the watcher reads
        // (tests/conformance/test_java.py::test_request_behind_a_slow_one_is_served).
        ahead = true;
    }

    private synchronized boolean append(byte[] chunk, int read) {
        ahead = false;
        ended = read < 0;
        if (read > 0) {
            if (buffer.length - end < read) {
                byte[] room = new byte[Math.max(buffer.length, 2 * (end - start + read))];
                System.arraycopy(buffer, start, room, 0, end - start);
                buffer = room;
                end -= start;
                start = 0;
            }
            System.arraycopy(chunk, 0, buffer, end, read);
            end += read;
        }
        notifyAll();
        return !ended;
    }
}

/** Frames to the host. */
final class Output {
    private final OutputStream out;

    Output(OutputStream out) {
        this.out = out;
    }

    /** Write whole frames, and attachments behind the last one; a host that is gone ends this process. */
    synchronized void write(Text frames, List<byte[]> attachments, int maxFrame) {
        try {
            write(frames.bytes, 0, frames.size);
            for (byte[] attachment : attachments) {
                for (int at = 0; at < attachment.length; at += maxFrame) {
                    int size = Math.min(maxFrame, attachment.length - at);
                    write(ByteBuffer.allocate(4).putInt(size).array(), 0, 4);
                    write(attachment, at, size);
                }
            }
        } catch (IOException gone) {
            Runtime.getRuntime().halt(0);
        }
    }

    private void write(byte[] bytes, int at, int size) throws IOException {
        while (size > 0) {
            int part = Math.min(size, SnakepitBridge.CHUNK_BYTES); // the JDK copies as much at a time
            out.write(bytes, at, part);
            at += part;
            size -= part;
        }
    }
}

// ----------------------------------------------------------------------------------------------------- JSON

/** Reads strict JSON: LinkedHashMap, ArrayList, String, Long or BigInteger, Double, Boolean, null. */
final class JsonReader {
    private static final int MAX_DEPTH = 512; // arbitrary: the host's 256 levels of args and the message around them
    private static final int MAX_DIGITS = 4300; // the limit of Python's own int(); parsing takes quadratic time

    private final byte[] data;
    private final int end;
    private int at;

    private JsonReader(byte[] data, int from, int to) {
        this.data = data;
        this.at = from;
        this.end = to;
    }

    static Object parse(byte[] data, int from, int to) throws BadJson {
        JsonReader reader = new JsonReader(data, from, to);
        Object value = reader.value(0);
        if (reader.next() != -1) throw reader.unexpected();
        return value;
    }

    /** The next byte that is no white space, not consumed; -1 at the end. */
    private int next() {
        while (at < end) {
            byte c = data[at];
            if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return c & 0xff;
            at++;
        }
        return -1;
    }

    private BadJson unexpected() {
        if (at >= end) return new BadJson("not JSON: it ends too early");
        return new BadJson("not JSON at byte " + at + ": '" + Errors.escape(data, at, at + 1) + "'");
    }

    private Object value(int depth) throws BadJson {
        int c = next();
        return switch (c) {
            case '{' -> object(depth + 1);
            case '[' -> array(depth + 1);
            case '"' -> string();
            case 't' -> word("true", Boolean.TRUE);
            case 'f' -> word("false", Boolean.FALSE);
            case 'n' -> word("null", null);
            default -> {
                if (c != '-' && !isDigit(c)) throw unexpected();
                yield number();
            }
        };
    }

    private void checkDepth(int depth) throws BadJson {
        if (depth > MAX_DEPTH) throw new BadJson("nested deeper than " + MAX_DEPTH + " levels");
    }

    private Map<String, Object> object(int depth) throws BadJson {
        checkDepth(depth);
        Map<String, Object> map = new LinkedHashMap<>();
        at++;
        if (next() == '}') {
            at++;
            return map;
        }
        while (true) {
            if (next() != '"') throw unexpected();
            String key = string();
            if (next() != ':') throw unexpected();
            at++;
            map.put(key, value(depth));
            int c = next();
            if (c != ',' && c != '}') throw unexpected();
            at++;
            if (c == '}') return map;
        }
    }

    private List<Object> array(int depth) throws BadJson {
        checkDepth(depth);
        List<Object> list = new ArrayList<>();
        at++;
        if (next() == ']') {
            at++;
            return list;
        }
        while (true) {
            list.add(value(depth));
            int c = next();
            if (c != ',' && c != ']') throw unexpected();
            at++;
            if (c == ']') return list;
        }
    }

    private Object word(String word, Object value) throws BadJson {
        for (int i = 0; i < word.length(); i++, at++) {
            if (at >= end || data[at] != word.charAt(i)) throw unexpected();
        }
        return value;
    }

    private static boolean isDigit(int c) {
        return c >= '0' && c <= '9';
    }

    private int digits() throws BadJson {
        int first = at;
        while (at < end && isDigit(data[at])) at++;
        if (at == first) throw unexpected();
        return at - first;
    }

    private Number number() throws BadJson {
        int first = at;
        if (data[at] == '-') at++;
        boolean zero = at < end && data[at] == '0';
        int count = digits();
        if (zero && count > 1) throw new BadJson("not JSON: a number that begins with 0");
        boolean integer = true;
        if (at < end && data[at] == '.') {
            integer = false;
            at++;
            digits();
        }
        if (at < end && (data[at] | 0x20) == 'e') {
            integer = false;
            at++;
            if (at < end && (data[at] == '+' || data[at] == '-')) at++;
            digits();
        }
        if (!integer) {
            String text = new String(data, first, at - first, StandardCharsets.ISO_8859_1);
            double value = Double.parseDouble(text);
            if (Double.isInfinite(value)) throw new BadJson("number " + Errors.shorten(text, 40) + " is out of range");
            return value;
        }
        if (count > 18) {
            if (count > MAX_DIGITS) throw new BadJson("an integer of " + count + " digits");
            BigInteger value = new BigInteger(new String(data, first, at - first, StandardCharsets.ISO_8859_1));
            if (value.bitLength() > 63) return value;
            return value.longValue();
        }
        long value = 0;
        for (int i = at - count; i < at; i++) value = value * 10 + data[i] - '0';
        return data[first] == '-' ? -value : value;
    }

    private String string() throws BadJson {
        int first = ++at;
        boolean ascii = true;
        while (at < end) {
            int c = data[at];
            if (c == '"') return decode(first, at++, ascii);
            if (c == '\\') return escaped(first);
            if (c < 0) ascii = false;
            else if (c < 0x20) throw unexpected();
            at++;
        }
        throw unexpected();
    }

    private String decode(int from, int to, boolean ascii) throws BadJson {
        if (ascii) return new String(data, from, to - from, StandardCharsets.ISO_8859_1);
        String text = new String(data, from, to - from, StandardCharsets.UTF_8);
        if (text.indexOf('\ufffd') < 0) return text; // Java's sign that it met no UTF-8, or text that was sent
        try {
            return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(data, from, to - from)).toString();
        } catch (CharacterCodingException error) {
            throw new BadJson("text that is not UTF-8");
        }
    }

    private String escaped(int first) throws BadJson {
        StringBuilder text = new StringBuilder();
        boolean surrogates = false;
        boolean ascii = true;
        while (at < end) {
            int c = data[at];
            if (c == '"') {
                text.append(decode(first, at++, ascii));
                String whole = text.toString();
                if (surrogates && Text.loneSurrogate(whole) >= 0) throw new BadJson("text with a lone surrogate");
                return whole;
            }
            if (c == '\\') {
                text.append(decode(first, at, ascii));
                char unit = escape();
                surrogates |= Character.isSurrogate(unit);
                text.append(unit);
                first = at;
                ascii = true;
                continue;
            }
            if (c < 0) ascii = false;
            else if (c < 0x20) throw unexpected();
            at++;
        }
        throw unexpected();
    }

    private char escape() throws BadJson {
        if (++at >= end) throw unexpected();
        char letter = (char) data[at];
        if (letter == 'u') return unit();
        int known = "\"\\/bfnrt".indexOf(letter);
        if (known < 0) throw unexpected();
        at++;
        return "\"\\/\b\f\n\r\t".charAt(known);
    }

    private char unit() throws BadJson {
        int unit = 0;
        at++;
        for (int i = 0; i < 4; i++, at++) {
            int digit = at < end ? Character.digit(data[at], 16) : -1;
            if (digit < 0) throw unexpected();
            unit = unit << 4 | digit;
        }
        return (char) unit;
    }
}

/** A growing piece of JSON text in UTF-8: one frame, or several that wait to be written together. */
final class Text {
    private static final int MAX_DEPTH = 256; // levels of nesting in a result; the host's limit for args is the same
    private static final byte[] HEX = "0123456789abcdef".getBytes(StandardCharsets.ISO_8859_1);
    private static final int KEPT_BYTES = 1 << 20; // arbitrary: what is larger is given back after use

    byte[] bytes;
    int size;

    // Where the writer is in the value: the containers above, and the key or the index in each.
    private final Object[] above = new Object[MAX_DEPTH];
    private final Object[] steps = new Object[MAX_DEPTH];
    private int depth;
    private String root;
    private List<byte[]> attachments; // null: bytes cannot travel
    private List<String> paths;

    Text(int capacity) {
        bytes = new byte[capacity];
    }

    /** Forget the text, and memory that is not often needed. */
    void clear() {
        size = 0;
        if (bytes.length > KEPT_BYTES) bytes = new byte[SnakepitBridge.CHUNK_BYTES];
    }

    private void room(int count) {
        if (bytes.length - size < count) {
            long wanted = Math.max((long) size + count, 2L * bytes.length);
            bytes = Arrays.copyOf(bytes, (int) Math.min(wanted, Integer.MAX_VALUE - 8));
        }
    }

    /** Begin a frame; returns where. */
    int open() {
        room(4);
        size += 4;
        return size - 4;
    }

    /** End the frame that began there; returns the size of its payload. */
    int close(int at) {
        int payload = size - at - 4;
        ByteBuffer.wrap(bytes).putInt(at, payload);
        return payload;
    }

    Text ascii(String text) {
        int length = text.length();
        room(length);
        for (int i = 0; i < length; i++) bytes[size++] = (byte) text.charAt(i);
        return this;
    }

    private void raw(Encoded text) {
        room(text.size());
        System.arraycopy(text.bytes(), text.from(), bytes, size, text.size());
        size += text.size();
    }

    Text integer(long value) {
        return ascii(Long.toString(value));
    }

    /** Write a value that JSON carries for certain. */
    Text plain(Object value) {
        return value(value, "", null, null);
    }

    /**
     * Write a value with null for each byte[].
     *
     * @param root where it stands in the message
     * @param attachments receives the bytes, in order; null where bytes cannot travel
     * @param paths receives a JSON pointer for each of them
     * @throws Refusal encode_error with the path of the first value that JSON cannot carry
     */
    Text value(Object value, String root, List<byte[]> attachments, List<String> paths) {
        this.root = root;
        this.attachments = attachments;
        this.paths = paths;
        depth = 0;
        try {
            write(value);
        } finally {
            Arrays.fill(above, null);
        }
        return this;
    }

    private void write(Object value) {
        if (value == null) ascii("null");
        else if (value instanceof String text) string(text);
        else if (value instanceof Long || value instanceof Integer || value instanceof Boolean) ascii(value.toString());
        else if (value instanceof Double || value instanceof Float) real(((Number) value).doubleValue());
        else if (value instanceof Map<?, ?> map) object(map);
        else if (value instanceof List<?> list) list(list);
        else if (value instanceof BigInteger || value instanceof Short || value instanceof Byte) ascii(value + "");
        else if (value instanceof byte[] data) attach(data);
        else if (value.getClass().isArray()) array(value);
        else if (value instanceof Encoded known) raw(known);
        else {
            String type = value.getClass().getTypeName();
            throw refused(type + " is not JSON; return a Map, a List, an array, text, a number or a boolean");
        }
    }

    private void real(double value) {
        if (Double.isNaN(value) || Double.isInfinite(value)) throw refused(value + " is not JSON");
        ascii(Double.toString(value));
    }

    private void enter(Object container) {
        if (depth == MAX_DEPTH) throw tooDeep();
        above[depth] = container;
        depth++;
    }

    private void object(Map<?, ?> map) {
        enter(map);
        ascii("{");
        boolean first = true;
        for (Map.Entry<?, ?> entry : map.entrySet()) {
            Object key = entry.getKey();
            if (!(key instanceof String name)) {
                depth--;
                String kind = key == null ? "null" : key.getClass().getTypeName();
                String shown = Errors.shorten(String.valueOf(key), 80);
                throw refused("key " + shown + " is " + kind + "; JSON keys are text");
            }
            if (!first) ascii(",");
            first = false;
            steps[depth - 1] = key;
            string(name);
            ascii(":");
            write(entry.getValue());
        }
        ascii("}");
        depth--;
    }

    private void list(List<?> list) {
        enter(list);
        ascii("[");
        int index = 0;
        for (Object item : list) {
            if (index > 0) ascii(",");
            steps[depth - 1] = index++;
            write(item);
        }
        ascii("]");
        depth--;
    }

    private void array(Object array) {
        enter(array);
        ascii("[");
        int length = Array.getLength(array);
        for (int i = 0; i < length; i++) {
            if (i > 0) ascii(",");
            steps[depth - 1] = i;
            write(Array.get(array, i));
        }
        ascii("]");
        depth--;
    }

    private void attach(byte[] data) {
        if (attachments == null) throw refused("byte[] cannot travel: the host takes no attachments");
        attachments.add(data);
        paths.add("/" + path(depth));
        ascii("null");
    }

    private void string(String text) {
        int length = text.length();
        room(length + 2);
        bytes[size++] = '"';
        for (int i = 0; i < length; i++) {
            char c = text.charAt(i);
            if (bytes.length - size < 8) room(Math.min(length - i, 1 << 20) + 8);
            if (c >= 0x20 && c < 0x80) {
                if (c == '"' || c == '\\') bytes[size++] = '\\';
                bytes[size++] = (byte) c;
            } else if (c < 0x20) {
                control(c);
            } else if (c < 0x800) {
                bytes[size++] = (byte) (0xc0 | c >> 6);
                bytes[size++] = (byte) (0x80 | c & 0x3f);
            } else if (!Character.isSurrogate(c)) {
                bytes[size++] = (byte) (0xe0 | c >> 12);
                bytes[size++] = (byte) (0x80 | c >> 6 & 0x3f);
                bytes[size++] = (byte) (0x80 | c & 0x3f);
            } else {
                if (Character.isLowSurrogate(c) || i + 1 == length || !Character.isLowSurrogate(text.charAt(i + 1)))
                    throw refused("text with a lone surrogate at index " + i + " is not UTF-8");
                int point = Character.toCodePoint(c, text.charAt(++i));
                bytes[size++] = (byte) (0xf0 | point >> 18);
                bytes[size++] = (byte) (0x80 | point >> 12 & 0x3f);
                bytes[size++] = (byte) (0x80 | point >> 6 & 0x3f);
                bytes[size++] = (byte) (0x80 | point & 0x3f);
            }
        }
        room(1);
        bytes[size++] = '"';
    }

    private void control(char c) {
        bytes[size++] = '\\';
        int letter = "\b\t\n\f\r".indexOf(c);
        if (letter >= 0) {
            bytes[size++] = (byte) "btnfr".charAt(letter);
            return;
        }
        bytes[size++] = 'u';
        bytes[size++] = '0';
        bytes[size++] = '0';
        bytes[size++] = HEX[c >> 4];
        bytes[size++] = HEX[c & 15];
    }

    static int loneSurrogate(String text) {
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (!Character.isSurrogate(c)) continue;
            if (Character.isLowSurrogate(c) || i + 1 == text.length() || !Character.isLowSurrogate(text.charAt(i + 1)))
                return i;
            i++;
        }
        return -1;
    }

    private String path(int steps) {
        StringBuilder path = new StringBuilder(root);
        for (int i = 0; i < steps; i++) {
            path.append('/').append(this.steps[i].toString().replace("~", "~0").replace("/", "~1"));
        }
        return path.toString();
    }

    private Refusal refused(String reason) {
        return refused(path(depth), reason);
    }

    private static Refusal refused(String path, String reason) {
        int length = path.length();
        String shown = length <= 200 ? path : path.substring(0, 120) + "..." + path.substring(length - 60);
        return new Refusal("encode_error", "EncodeError", shown + ": " + reason);
    }

    private Refusal tooDeep() {
        for (int lower = 1; lower < depth; lower++) {
            for (int upper = 0; upper < lower; upper++) {
                if (above[upper] == above[lower]) return refused(path(lower), "a cycle: the value contains itself");
            }
        }
        return refused("nested deeper than " + MAX_DEPTH + " levels");
    }
}

/** A piece of JSON text that is written as it is. */
record Encoded(byte[] bytes, int from, int size) {
    static Encoded of(Object value) {
        Text text = new Text(256).plain(value);
        return new Encoded(text.bytes, 0, text.size);
    }
}

// --------------------------------------------------------------------------------------------------- errors

/** Exceptions as the host is told of them. */
final class Errors {
    private static final int MAX_TEXT_BYTES = 64 << 10;
    private static final String REFLECTION = "\\s+at (java\\.base/)?(jdk\\.internal|java\\.lang)\\.reflect\\..*";

    private Errors() {}

    /** Text that is valid UTF-8 and at most MAX_TEXT_BYTES long, keeping its start. */
    static String cap(String text) {
        if (text.length() <= MAX_TEXT_BYTES / 3 && Text.loneSurrogate(text) < 0) return text;
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        int end = bytes.length;
        if (end > MAX_TEXT_BYTES) {
            end = MAX_TEXT_BYTES - 5;
            while ((bytes[end] & 0xc0) == 0x80) end--;
        }
        return new String(bytes, 0, end, StandardCharsets.UTF_8) + (end < bytes.length ? "[...]" : "");
    }

    static String shorten(String text, int length) {
        return text.length() <= length ? text : text.substring(0, length);
    }

    static String escape(byte[] data, int from, int to) {
        StringBuilder text = new StringBuilder();
        for (int i = from; i < Math.min(to, from + 80); i++) {
            int c = data[i] & 0xff;
            if (c >= 0x20 && c < 0x7f && c != '\\') text.append((char) c);
            else text.append(String.format("\\x%02x", c));
        }
        return text.toString();
    }

    static String type(Throwable error) {
        String name = error.getClass().getName();
        return name.substring(Math.max(name.lastIndexOf('.'), name.lastIndexOf('$')) + 1);
    }

    static String text(Throwable error) {
        try {
            String message = error.getMessage();
            return message == null || message.isEmpty() ? type(error) : cap(message);
        } catch (Throwable second) {
            return "<getMessage() of " + type(error) + " raised " + type(second) + ">";
        }
    }

    /** The traceback as Java writes it, without the frames below the handler. */
    private static String traceback(Throwable error) {
        StringWriter all = new StringWriter();
        try {
            error.printStackTrace(new PrintWriter(all));
        } catch (Throwable second) {
            return type(error) + "\n<its traceback cannot be shown: " + type(second) + ">\n";
        }
        List<String> shown = new ArrayList<>();
        for (String line : all.toString().split("\n")) {
            if (!line.stripLeading().startsWith("at ")) cutBelow(shown);
            shown.add(line);
        }
        cutBelow(shown);
        return cap(String.join("\n", shown) + "\n");
    }

    /** Drop the last frames if they are the bridge's, and the reflection by which it calls. */
    private static void cutBelow(List<String> frames) {
        int end = frames.size();
        while (end > 0 && frames.get(end - 1).matches("\\s+at snakepit\\.[A-Z].*")) end--;
        if (end == frames.size()) return;
        while (end > 0 && frames.get(end - 1).matches(REFLECTION)) end--;
        frames.subList(end, frames.size()).clear();
    }

    /** The `error` object of a reply: PROTOCOL.md, "Errors". */
    static Map<String, Object> describe(Throwable error) {
        Map<String, Object> report = describeBriefly(error);
        if (error instanceof Refusal) return report;
        report.put("traceback", traceback(error));
        try {
            Encoded data = data(error);
            if (data != null) report.put("data", data);
            Throwable cause = error.getCause();
            if (cause != null) report.put("cause", Map.of("type", type(cause), "message", text(cause)));
        } catch (Throwable unreadable) {
            return report; // extras: what cannot be told of them must not hide the error itself
        }
        return report;
    }

    /** The same without what the exception itself has to tell. */
    static Map<String, Object> describeBriefly(Throwable error) {
        Map<String, Object> report = new LinkedHashMap<>();
        Refusal refusal = error instanceof Refusal known ? known : null;
        report.put("code", refusal == null ? "handler_error" : refusal.code);
        report.put("type", refusal == null ? type(error) : refusal.type);
        report.put("message", text(error));
        report.put("traceback", null);
        report.put("language", "java");
        return report;
    }

    /** The public field `data` of an exception, or what its getData() returns, if JSON can carry that. */
    private static Encoded data(Throwable error) {
        Object data;
        try {
            Method getter = error.getClass().getMethod("getData");
            getter.trySetAccessible();
            data = getter.invoke(error);
        } catch (ReflectiveOperationException | RuntimeException absent) {
            try {
                java.lang.reflect.Field field = error.getClass().getField("data");
                field.trySetAccessible();
                data = field.get(error);
            } catch (ReflectiveOperationException | RuntimeException none) {
                return null;
            }
        }
        if (data == null) return null;
        try {
            Text text = new Text(256).value(List.of(data), "data", null, null); // a list: the report takes a level
            return new Encoded(text.bytes, 1, text.size - 2);
        } catch (Throwable unencodable) {
            return null;
        }
    }
}

// ------------------------------------------------------------------------------------------------- handlers

/** Fits JSON values to the types of parameters. */
final class Fit {
    static final Object MISMATCH = new Object();

    private Fit() {}

    /** Say whether some JSON value can become this type. */
    static boolean isKnown(Type type) {
        if (type instanceof Class<?> known) {
            if (known.isArray()) return isKnown(known.getComponentType());
            return known.isPrimitive() && known != char.class && known != void.class
                    || Number.class.isAssignableFrom(known) && known.getName().matches("java\\.(lang|math)\\.\\w+")
                    || List.of(Object.class, String.class, Boolean.class, Map.class, List.class, Optional.class)
                            .contains(known);
        }
        if (type instanceof ParameterizedType of) {
            Type[] inner = of.getActualTypeArguments();
            if (of.getRawType() == Map.class) return inner[0] == String.class && isKnown(inner[1]);
            return isKnown(of.getRawType()) && isKnown(inner[0]);
        }
        if (type instanceof GenericArrayType array) return isKnown(array.getGenericComponentType());
        return type instanceof WildcardType;
    }

    /** The JSON Schema of the values that become this type. */
    static Map<String, Object> schema(Type type) {
        if (type instanceof ParameterizedType of) {
            Type[] inner = of.getActualTypeArguments();
            Map<String, Object> content = schema(inner[inner.length - 1]);
            if (of.getRawType() == Optional.class) return content;
            boolean isMap = of.getRawType() == Map.class;
            return orNull(isMap ? holder("object", "additionalProperties", content) : array(content));
        }
        if (type instanceof GenericArrayType array) return orNull(array(schema(array.getGenericComponentType())));
        if (!(type instanceof Class<?> known)) return Map.of();
        if (known == byte[].class) return Map.of("description", "bytes"); // JSON Schema has no word for them
        Map<String, Object> schema = known.isArray() ? array(schema(known.getComponentType())) : simple(known);
        return known.isPrimitive() ? schema : orNull(schema);
    }

    private static Map<String, Object> simple(Class<?> type) {
        return switch (type.getSimpleName()) {
            case "boolean", "Boolean" -> Map.of("type", "boolean");
            case "byte", "Byte" -> range("integer", "minimum", Byte.MIN_VALUE, "maximum", Byte.MAX_VALUE);
            case "short", "Short" -> range("integer", "minimum", Short.MIN_VALUE, "maximum", Short.MAX_VALUE);
            case "int", "Integer" -> range("integer", "minimum", Integer.MIN_VALUE, "maximum", Integer.MAX_VALUE);
            case "long", "Long" -> range("integer", "minimum", Long.MIN_VALUE, "maximum", Long.MAX_VALUE);
            case "BigInteger" -> Map.of("type", "integer");
            case "float", "Float" -> {
                double limit = 0x1.ffffffp127; // the least that is rounded to infinity
                yield range("number", "exclusiveMinimum", -limit, "exclusiveMaximum", limit);
            }
            case "double", "Double", "BigDecimal", "Number" -> Map.of("type", "number");
            case "String" -> Map.of("type", "string");
            case "List" -> Map.of("type", "array");
            case "Map" -> Map.of("type", "object");
            default -> Map.of();
        };
    }

    private static Map<String, Object> range(String type, String lower, Number least, String upper, Number most) {
        Map<String, Object> schema = holder(type, lower, least);
        schema.put(upper, most);
        return schema;
    }

    private static Map<String, Object> array(Map<String, Object> items) {
        return holder("array", "items", items);
    }

    private static Map<String, Object> holder(String type, String key, Object value) {
        Map<String, Object> schema = new LinkedHashMap<>();
        schema.put("type", type);
        schema.put(key, value);
        return schema;
    }

    private static Map<String, Object> orNull(Map<String, Object> schema) {
        return schema.containsKey("type") ? Map.of("anyOf", List.of(schema, Map.of("type", "null"))) : schema;
    }

    static Object convert(Object value, Type type) {
        if (type instanceof Class<?> known) return toClass(value, known);
        if (type instanceof ParameterizedType of) {
            Type[] inner = of.getActualTypeArguments();
            if (of.getRawType() == Optional.class) {
                Object content = value == null ? null : convert(value, inner[0]);
                return content == MISMATCH ? MISMATCH : Optional.ofNullable(content);
            }
            if (value == null) return null;
            if (of.getRawType() == Map.class) return value instanceof Map<?, ?> map ? toMap(map, inner[1]) : MISMATCH;
            return value instanceof List<?> list ? toList(list, inner[0]) : MISMATCH;
        }
        if (type instanceof GenericArrayType array) {
            Type item = array.getGenericComponentType();
            return toArray(value, item, (Class<?>) (item instanceof ParameterizedType of ? of.getRawType() : item));
        }
        return value;
    }

    private static Object toMap(Map<?, ?> map, Type type) {
        if (type == Object.class || type instanceof WildcardType) return map;
        Map<Object, Object> fitted = new LinkedHashMap<>();
        for (Map.Entry<?, ?> entry : map.entrySet()) {
            Object item = convert(entry.getValue(), type);
            if (item == MISMATCH) return MISMATCH;
            fitted.put(entry.getKey(), item);
        }
        return fitted;
    }

    private static Object toList(List<?> list, Type type) {
        if (type == Object.class || type instanceof WildcardType) return list;
        List<Object> fitted = new ArrayList<>(list.size());
        for (Object item : list) {
            Object converted = convert(item, type);
            if (converted == MISMATCH) return MISMATCH;
            fitted.add(converted);
        }
        return fitted;
    }

    private static Object toArray(Object value, Type type, Class<?> raw) {
        if (value == null) return null;
        if (!(value instanceof List<?> list)) return MISMATCH;
        Object array = Array.newInstance(raw, list.size());
        for (int i = 0; i < list.size(); i++) {
            Object item = convert(list.get(i), type);
            if (item == MISMATCH || item == null && raw.isPrimitive()) return MISMATCH;
            Array.set(array, i, item);
        }
        return array;
    }

    private static Object toClass(Object value, Class<?> type) {
        if (type == Object.class) return value;
        if (type == Optional.class) return Optional.ofNullable(value);
        if (value == null) return type.isPrimitive() ? MISMATCH : null;
        if (type.isInstance(value)) return value;
        if (type == boolean.class) return value instanceof Boolean ? value : MISMATCH;
        if (value instanceof Number number) return toNumber(number, type);
        Class<?> item = type.isArray() && type != byte[].class ? type.getComponentType() : null;
        return item == null ? MISMATCH : toArray(value, item, item);
    }

    /** An integer fits where it stays the same; 2.0 is no integer. */
    private static Object toNumber(Number number, Class<?> type) {
        boolean isDouble = type == double.class || type == Double.class;
        boolean isFloat = type == float.class || type == Float.class;
        if (number instanceof Long integer) {
            long value = integer;
            if (type == BigInteger.class) return BigInteger.valueOf(value);
            if (type == BigDecimal.class) return BigDecimal.valueOf(value);
            Number fitted = null;
            if (type == long.class) fitted = value;
            else if (type == int.class || type == Integer.class) fitted = (int) value;
            else if (type == short.class || type == Short.class) fitted = (short) value;
            else if (type == byte.class || type == Byte.class) fitted = (byte) value;
            else if (isDouble && Math.abs(value) <= 1L << 53) fitted = (double) value;
            else if (isFloat && Math.abs(value) <= 1L << 24) fitted = (float) value;
            return fitted != null && fitted.longValue() == value ? fitted : MISMATCH;
        }
        if (number instanceof Double real) {
            if (isDouble) return real;
            if (isFloat && Float.isFinite(real.floatValue())) return real.floatValue();
            return type == BigDecimal.class ? BigDecimal.valueOf(real) : MISMATCH;
        }
        return type == BigDecimal.class && number instanceof BigInteger big ? new BigDecimal(big) : MISMATCH;
    }
}

/** A command, or a function of the start. */
abstract class Handler {
    final String name;
    final String doc;
    final String[] params; // what the handshake tells
    final Encoded schema; // of an object of arguments; null where it may be any

    Handler(String name, String doc, Encoded schema, String... params) {
        this.name = name;
        this.doc = doc;
        this.schema = schema;
        this.params = params;
    }

    abstract Object call(Object args, SnakepitBridge.Context context) throws Throwable;
}

/** A method of the user: binds args to its parameters. */
final class MethodHandler extends Handler {
    private static final List<String> ANYTHING = List.of(
            "java.lang.Object",
            "java.util.Map",
            "java.util.Map<?, ?>",
            "java.util.Map<java.lang.String, ?>",
            "java.util.Map<java.lang.String, java.lang.Object>",
            "java.util.Map<java.lang.Object, java.lang.Object>");

    private final Registry registry;
    private final String className;
    private final String methodName;
    private final boolean isStatic;
    private final String[] typeNames; // of all its parameters
    // What follows is made when it is first called: reflection takes as long as all else at the start.
    private Method method;
    private Object target;
    private Type[] types; // null in the place of the context
    private String[] names;
    private boolean takesAll;

    private MethodHandler(
            Registry registry,
            String name,
            String doc,
            String className,
            String methodName,
            boolean isStatic,
            String[] types,
            String[] params,
            Encoded schema) {
        super(name, doc, schema, params);
        this.registry = registry;
        this.className = className;
        this.methodName = methodName;
        this.isStatic = isStatic;
        this.typeNames = types;
    }

    static MethodHandler of(Registry registry, String name, String doc, Method method) {
        String className = method.getDeclaringClass().getName();
        Class<?>[] types = method.getParameterTypes();
        String[] typeNames = new String[types.length];
        for (int i = 0; i < types.length; i++) typeNames[i] = types[i].getName();
        List<String> params = new ArrayList<>();
        List<String> required = new ArrayList<>();
        Map<String, Object> properties = new LinkedHashMap<>();
        boolean takesAll = takesAll(method);
        for (Parameter parameter : method.getParameters()) {
            if (parameter.getType() == SnakepitBridge.Context.class || takesAll) continue;
            if (!parameter.isNamePresent()) {
                String advice = ": compile it with -parameters, or take (Map<String, Object> args, Context ctx)";
                throw new IllegalArgumentException(place(method) + advice);
            }
            Type type = parameter.getParameterizedType();
            if (!Fit.isKnown(type)) {
                String what = place(method) + ": parameter '" + parameter.getName() + "' is " + type.getTypeName();
                throw new IllegalArgumentException(what + ", which no JSON value becomes");
            }
            params.add(parameter.getName());
            properties.put(parameter.getName(), Fit.schema(type));
            if (!isOptional(type)) required.add(parameter.getName());
        }
        Map<String, Object> schema = new LinkedHashMap<>();
        schema.put("type", "object");
        schema.put("properties", properties);
        schema.put("required", required);
        schema.put("additionalProperties", false);
        boolean isStatic = Modifier.isStatic(method.getModifiers());
        String[] names = params.toArray(new String[0]);
        return new MethodHandler(
                registry,
                name,
                doc,
                className,
                method.getName(),
                isStatic,
                typeNames,
                names,
                takesAll ? null : Encoded.of(schema));
    }

    static String place(Method method) {
        return method.getDeclaringClass().getName() + "." + method.getName();
    }

    String place() {
        return className + "." + methodName;
    }

    /** What the index keeps of it; read at every start, so it is short. */
    Object[] entry() {
        int size = schema == null ? 0 : schema.size();
        return new Object[] {name, doc, className, methodName, isStatic, typeNames, params, size};
    }

    static MethodHandler of(Registry registry, List<?> entry, Encoded schema) {
        return new MethodHandler(
                registry,
                (String) entry.get(0),
                (String) entry.get(1),
                (String) entry.get(2),
                (String) entry.get(3),
                (Boolean) entry.get(4),
                ((List<?>) entry.get(5)).toArray(new String[0]),
                ((List<?>) entry.get(6)).toArray(new String[0]),
                schema);
    }

    /** Its only parameter besides the context is called `args`: it takes everything as it was sent. */
    private static boolean takesAll(Method method) {
        Parameter only = null;
        for (Parameter parameter : method.getParameters()) {
            if (parameter.getType() == SnakepitBridge.Context.class) continue;
            if (only != null) return false;
            only = parameter;
        }
        if (only == null || only.isNamePresent() && !only.getName().equals("args")) return false;
        return ANYTHING.contains(only.getParameterizedType().getTypeName());
    }

    void initialize() throws ReflectiveOperationException {
        if (!isStatic) target = registry.instance(registry.load(className));
    }

    private void resolve() throws ReflectiveOperationException {
        Class<?> owner = registry.load(className);
        Class<?>[] classes = new Class<?>[typeNames.length];
        for (int i = 0; i < classes.length; i++) classes[i] = registry.load(typeNames[i]);
        Method found = owner.getDeclaredMethod(methodName, classes);
        found.trySetAccessible();
        takesAll = takesAll(found);
        types = new Type[classes.length];
        names = new String[classes.length];
        Type[] generic = found.getGenericParameterTypes();
        for (int i = 0, next = 0; i < classes.length; i++) {
            if (classes[i] == SnakepitBridge.Context.class) continue;
            types[i] = generic[i];
            names[i] = takesAll ? "args" : params[next++];
        }
        method = found;
    }

    @Override
    Object call(Object args, SnakepitBridge.Context context) throws Throwable {
        if (method == null) resolve();
        Object[] values = bind(args, context);
        try {
            return method.invoke(target, values);
        } catch (InvocationTargetException error) {
            throw error.getCause();
        }
    }

    /** An object is bound by name, an array by position, null to nothing; a scalar is the first of all. */
    private Object[] bind(Object args, SnakepitBridge.Context context) {
        Object[] values = new Object[types.length];
        Map<?, ?> byName = args instanceof Map<?, ?> map ? map : null;
        List<?> scalar = byName != null || args == null ? List.of() : List.of(args);
        List<?> byPlace = args instanceof List<?> list ? list : scalar;
        List<String> missing = new ArrayList<>();
        int bound = 0;
        int position = 0;
        for (int i = 0; i < types.length; i++) {
            if (types[i] == null) {
                values[i] = context;
                continue;
            }
            if (takesAll) {
                values[i] = args;
                boolean fits = types[i] == Object.class || byName != null;
                if (!fits) throw Refusal.badArgs(name + ": args must be an object");
                continue;
            }
            boolean given = byName == null ? position < byPlace.size() : byName.containsKey(names[i]);
            if (given) {
                bound++;
                Object value = byName == null ? byPlace.get(position) : byName.get(names[i]);
                values[i] = Fit.convert(value, types[i]);
                if (values[i] == Fit.MISMATCH) throw mismatch(names[i], types[i], value);
            } else if (isOptional(types[i])) values[i] = Optional.empty();
            else missing.add("'" + names[i] + "'");
            position++;
        }
        if (takesAll) return values;
        if (!missing.isEmpty() || bound < (byName == null ? byPlace.size() : byName.size())) {
            throw wrongArgs(missing, byName, byPlace.size(), position);
        }
        return values;
    }

    private static boolean isOptional(Type type) {
        return type == Optional.class || type instanceof ParameterizedType of && of.getRawType() == Optional.class;
    }

    private Refusal mismatch(String param, Type type, Object value) {
        String shown;
        try {
            shown = value instanceof byte[] ? "bytes" : Registry.json(value);
        } catch (Refusal bytesInside) {
            shown = "bytes inside " + (value instanceof Map ? "an object" : "an array");
        }
        String wanted = type.getTypeName().replaceAll("\\w+\\.", "");
        return Refusal.badArgs(name + ": '" + param + "' must be " + wanted + ", not " + Errors.shorten(shown, 80));
    }

    private Refusal wrongArgs(List<String> missing, Map<?, ?> byName, int given, int positions) {
        List<String> problems = new ArrayList<>();
        if (!missing.isEmpty()) problems.add("missing " + String.join(", ", missing));
        if (byName != null) {
            List<String> unexpected = new ArrayList<>();
            for (Object key : byName.keySet()) {
                if (!Arrays.asList(params).contains(key)) unexpected.add("'" + key + "'");
            }
            unexpected.sort(null);
            if (!unexpected.isEmpty()) problems.add("unexpected " + String.join(", ", unexpected));
        } else if (given > positions) {
            problems.add("takes at most " + positions + " positional arguments, got " + given);
        }
        StringBuilder signature = new StringBuilder();
        for (int i = 0; i < types.length; i++) {
            if (types[i] == null) continue;
            if (signature.length() > 0) signature.append(", ");
            signature.append(types[i].getTypeName().replaceAll("\\w+\\.", "")).append(' ').append(names[i]);
        }
        String message = name + ": " + String.join("; ", problems) + "; signature: " + name + "(" + signature + ")";
        return Refusal.badArgs(Errors.cap(message));
    }
}

/** The commands of this worker, and its functions of the start. */
final class Registry {
    final Map<String, Handler> commands = new TreeMap<>();
    final List<MethodHandler> starters = new ArrayList<>();
    private final Map<Class<?>, Object> instances = new HashMap<>();
    private final List<String> classNames = new ArrayList<>();
    private ClassLoader loader = SnakepitBridge.class.getClassLoader();

    static String json(Object value) {
        Text text = new Text(256).plain(value);
        return new String(text.bytes, 0, text.size, StandardCharsets.UTF_8);
    }

    Class<?> load(String name) throws ClassNotFoundException {
        return switch (name) {
            case "boolean" -> boolean.class;
            case "byte" -> byte.class;
            case "short" -> short.class;
            case "int" -> int.class;
            case "long" -> long.class;
            case "float" -> float.class;
            case "double" -> double.class;
            default -> Class.forName(name, true, loader);
        };
    }

    Object instance(Class<?> owner) throws ReflectiveOperationException {
        Object made = instances.get(owner);
        if (made == null) {
            Constructor<?> constructor;
            try {
                constructor = owner.getDeclaredConstructor();
            } catch (NoSuchMethodException error) {
                throw new IllegalArgumentException(
                        owner.getName() + " needs a constructor without parameters, or static methods");
            }
            constructor.trySetAccessible();
            try {
                made = constructor.newInstance();
            } catch (InvocationTargetException error) {
                throw Registry.<RuntimeException>raise(error.getCause());
            }
            instances.put(owner, made);
        }
        return made;
    }

    @SuppressWarnings("unchecked")
    private static <T extends Throwable> T raise(Throwable error) throws T {
        throw (T) error;
    }

    /** Load a .java file, a jar, or classes of the class path, with the index that was made of them, if any. */
    void load(String handlers, String index) throws Exception {
        if (handlers.endsWith(".java") || handlers.endsWith(".jar")) {
            if (!new File(handlers).isFile()) throw new FileNotFoundException("no handler file at " + handlers);
            Thread.currentThread().setContextClassLoader(loader = Sources.load(handlers, classNames));
        } else if (handlers.indexOf('/') >= 0) {
            String reason = new File(handlers).exists() ? " is no .java file and no .jar" : " does not exist";
            throw new FileNotFoundException("handlers: " + handlers + reason);
        } else if (index != null) {
            readIndex(index);
            return;
        } else classNames.addAll(Arrays.asList(handlers.split(",")));
        for (String name : classNames) scan(Class.forName(name, false, loader));
        if (starters.isEmpty() && commands.values().stream().noneMatch(MethodHandler.class::isInstance)) {
            throw new IllegalArgumentException(handlers + " has no method with @Command");
        }
    }

    private void readIndex(String path) throws IOException, BadJson {
        byte[] text;
        try (InputStream in = new FileInputStream(path)) {
            text = in.readAllBytes();
        }
        int at = 0;
        while (text[at] != '\n') at++;
        text[at] = '}'; // the rest goes to the host as it is: reading and writing it would take as long again
        Map<?, ?> read = (Map<?, ?>) JsonReader.parse(text, 0, at + 1);
        at += Index.SCHEMAS.length() + 1;
        for (Object name : (List<?>) read.get("classes")) classNames.add((String) name);
        for (Object each : (List<?>) read.get("commands")) {
            List<?> entry = (List<?>) each;
            int size = ((Long) entry.get(7)).intValue();
            add(MethodHandler.of(this, entry, size == 0 ? null : new Encoded(text, at, size)));
            at += size == 0 ? 0 : size + 1;
        }
        for (Object entry : (List<?>) read.get("starters")) starters.add(MethodHandler.of(this, (List<?>) entry, null));
    }

    private void scan(Class<?> owner) {
        Method[] methods = owner.getDeclaredMethods();
        Arrays.sort(methods, (a, b) -> a.toString().compareTo(b.toString()));
        for (Method method : methods) {
            SnakepitBridge.Command command = method.getAnnotation(SnakepitBridge.Command.class);
            if (method.isSynthetic()) continue;
            if (command != null) {
                String name = command.value().isEmpty() ? method.getName() : command.value();
                add(MethodHandler.of(this, name, Errors.cap(command.doc()), method));
            }
            if (method.getAnnotation(SnakepitBridge.OnStart.class) != null) {
                starters.add(MethodHandler.of(this, method.getName(), "", method));
            }
        }
    }

    private void add(MethodHandler handler) {
        if (handler.name.equals("ping")) throw new IllegalArgumentException("command 'ping' belongs to the bridge");
        Handler old = commands.put(handler.name, handler);
        if (old instanceof MethodHandler first) {
            String places = first.place() + " and " + handler.place();
            throw new IllegalArgumentException("command '" + handler.name + "' is defined twice: " + places);
        }
    }

    /** Run what the classes do when they are first used: their static parts and their constructors. */
    void initialize() throws ReflectiveOperationException {
        for (String name : classNames) load(name);
        for (Handler handler : commands.values()) {
            if (handler instanceof MethodHandler own) own.initialize();
        }
        for (MethodHandler starter : starters) starter.initialize();
    }

    /** Load the classes that can be, without running anything of theirs. */
    void touch() {
        for (String name : classNames) {
            try {
                Class.forName(name, false, loader);
            } catch (ClassNotFoundException | LinkageError elsewhere) {
                continue;
            }
        }
    }

    Refusal unknown(String name) {
        String available = String.join(", ", commands.keySet());
        String message = "Unknown command: '" + name + "'. Available: " + available;
        return new Refusal("unknown_command", "UnknownCommand", message);
    }

    /** Print the index of the classes named: what the start would otherwise find out by reflection. */
    static final class Index {
        static final String SCHEMAS = "\n,\"schemas\":"; // in the order of the commands

        public static void main(String[] classes) throws Exception {
            Registry registry = new Registry();
            try {
                if (classes.length > 0) registry.load(String.join(",", classes), null);
            } catch (ReflectiveOperationException | IllegalArgumentException | LinkageError error) {
                System.err.println(error instanceof IllegalArgumentException ? error.getMessage() : error.toString());
                System.exit(1);
            }
            List<Object> commands = new ArrayList<>();
            List<Object> schemas = new ArrayList<>();
            for (Handler command : registry.commands.values()) {
                commands.add(((MethodHandler) command).entry());
                if (command.schema != null) schemas.add(command.schema);
            }
            List<Object> starters = new ArrayList<>();
            for (MethodHandler starter : registry.starters) starters.add(starter.entry());
            Text text = new Text(4096).ascii("{\"classes\":").plain(registry.classNames);
            text.ascii(",\"commands\":").plain(commands).ascii(",\"starters\":").plain(starters);
            text.ascii(SCHEMAS).plain(schemas).ascii("}\n");
            System.out.write(text.bytes, 0, text.size);
            System.out.flush();
        }
    }
}

/** Handlers that were not prepared: source is compiled in memory, jars are searched. */
final class Sources {
    private static final String ANNOTATIONS = "Lsnakepit/SnakepitBridge$"; // in the constants of a class that uses one

    private Sources() {}

    /** Load a file; adds the names of the classes that may have handlers. */
    static ClassLoader load(String file, List<String> names) throws Exception {
        ClassLoader parent = SnakepitBridge.class.getClassLoader();
        if (file.endsWith(".java")) {
            Compiled compiled = new Compiled(file);
            for (Map.Entry<String, byte[]> each : compiled.classes.entrySet()) {
                if (mentions(each.getValue())) names.add(each.getKey());
            }
            return new Loader(compiled.classes, parent);
        }
        try (JarFile jar = new JarFile(file)) {
            for (JarEntry entry : java.util.Collections.list(jar.entries())) {
                String name = entry.getName();
                if (!name.endsWith(".class") || name.startsWith("META-INF/")) continue;
                if (!mentions(jar.getInputStream(entry).readAllBytes())) continue;
                names.add(name.substring(0, name.length() - 6).replace('/', '.'));
            }
        }
        names.removeIf(name -> name.startsWith("snakepit.SnakepitBridge"));
        return new URLClassLoader(new URL[] {new File(file).toURI().toURL()}, parent);
    }

    private static boolean mentions(byte[] classFile) {
        return new String(classFile, StandardCharsets.ISO_8859_1).contains(ANNOTATIONS);
    }

    private static final class Loader extends ClassLoader {
        private final Map<String, byte[]> classes;

        Loader(Map<String, byte[]> classes, ClassLoader parent) {
            super(parent);
            this.classes = classes;
        }

        @Override
        protected Class<?> findClass(String name) throws ClassNotFoundException {
            byte[] bytes = classes.get(name);
            if (bytes == null) throw new ClassNotFoundException(name);
            return defineClass(name, bytes, 0, bytes.length);
        }
    }

    /** The classes of one source file, compiled by this Java's own compiler. */
    private static final class Compiled {
        final Map<String, byte[]> classes = new TreeMap<>();

        Compiled(String file) throws IOException {
            JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
            if (compiler == null) {
                throw new IllegalStateException(
                        "this Java has no compiler (it is a JRE): install a JDK, or give the handlers as a jar");
            }
            DiagnosticCollector<JavaFileObject> found = new DiagnosticCollector<>();
            var standard = compiler.getStandardFileManager(found, Locale.ROOT, StandardCharsets.UTF_8);
            var options = List.of("-parameters", "-proc:none", "-classpath", System.getProperty("java.class.path"));
            boolean done = compiler.getTask(
                            null, manager(standard), found, options, null, standard.getJavaFileObjects(file))
                    .call();
            if (done) return;
            StringBuilder text = new StringBuilder();
            for (Diagnostic<?> diagnostic : found.getDiagnostics()) {
                if (diagnostic.getKind() == Diagnostic.Kind.ERROR) text.append(diagnostic).append('\n');
            }
            throw new IllegalArgumentException(text.toString().stripTrailing());
        }

        private JavaFileManager manager(JavaFileManager standard) {
            return new ForwardingJavaFileManager<>(standard) {
                @Override
                public JavaFileObject getJavaFileForOutput(
                        Location location, String name, JavaFileObject.Kind kind, FileObject sibling) {
                    URI place = URI.create("mem:///" + name.replace('.', '/') + kind.extension);
                    return new SimpleJavaFileObject(place, kind) {
                        @Override
                        public OutputStream openOutputStream() {
                            return new ByteArrayOutputStream() {
                                @Override
                                public void close() {
                                    classes.put(name, toByteArray());
                                }
                            };
                        }
                    };
                }
            };
        }
    }
}

// ----------------------------------------------------------------------------------------------- built-ins

/** The commands that every bridge brings. */
final class BuiltIn extends Handler {
    private final Worker worker;

    private BuiltIn(Worker worker, String name, String doc, String... params) {
        super(name, doc, null, params);
        this.worker = worker;
    }

    static void addTo(Map<String, Handler> commands, Worker worker) {
        commands.put("ping", new BuiltIn(worker, "ping", "Tell that the worker is well."));
        commands.put("echo", new BuiltIn(worker, "echo", "Return the args as they came."));
        String compute = "Add, subtract, multiply or divide two numbers.";
        commands.put("compute", new BuiltIn(worker, "compute", compute, "operation", "a", "b"));
        commands.put("info", new BuiltIn(worker, "info", "Describe the bridge and its system."));
    }

    @Override
    Object call(Object args, SnakepitBridge.Context context) {
        Map<String, Object> result = new LinkedHashMap<>();
        result.put("status", "ok");
        switch (name) {
            case "ping" -> ping(result, args);
            case "echo" -> result.put("echoed", args);
            case "compute" -> compute(result, args);
            default -> info(result);
        }
        result.put("timestamp", System.currentTimeMillis() / 1000.0);
        return result;
    }

    private void ping(Map<String, Object> result, Object args) {
        Object id = worker.workerId;
        Object echo = args;
        if (args instanceof Map<?, ?> map) {
            Map<Object, Object> copy = new LinkedHashMap<>(map);
            // The handshake's own words; start_args may be large.
            copy.remove("protocol");
            copy.remove("start_args");
            copy.remove("prepare");
            if (copy.get("worker_id") instanceof String) id = copy.get("worker_id");
            echo = copy;
        }
        result.put("bridge_type", "generic_java");
        result.put("uptime", worker.uptime());
        result.put("requests_handled", worker.count);
        result.put("java_version", System.getProperty("java.version"));
        result.put("worker_id", id);
        result.put("echo", echo);
    }

    private void info(Map<String, Object> result) {
        Map<String, Object> bridge = new LinkedHashMap<>();
        bridge.put("name", "Snakepit Java Bridge");
        bridge.put("version", SnakepitBridge.VERSION);
        bridge.put("supported_commands", new ArrayList<>(worker.registry.commands.keySet()));
        bridge.put("uptime", worker.uptime());
        bridge.put("total_requests", worker.count);
        Map<String, Object> system = new LinkedHashMap<>();
        for (String key : new String[] {"java.version", "java.vm.name", "os.name", "os.arch"}) {
            system.put(key.replace('.', '_'), System.getProperty(key));
        }
        system.put("max_memory", Runtime.getRuntime().maxMemory());
        result.put("bridge_info", bridge);
        result.put("system_info", system);
    }

    private static void compute(Map<String, Object> result, Object args) {
        if (!(args instanceof Map<?, ?> fields)) throw Refusal.badArgs("compute: args must be an object");
        for (String field : new String[] {"operation", "a", "b"}) {
            if (!fields.containsKey(field)) throw Refusal.badArgs("compute: missing field '" + field + "'");
        }
        Object operation = fields.get("operation");
        if (!List.of("add", "divide", "multiply", "subtract").contains(operation == null ? "" : operation)) {
            String shown = Errors.shorten(operation instanceof String text ? text : Registry.json(operation), 200);
            throw Refusal.badArgs("compute: unknown operation '" + shown + "'; one of add, divide, multiply, subtract");
        }
        for (String field : new String[] {"a", "b"}) {
            if (fields.get(field) instanceof Number) continue;
            throw Refusal.badArgs("compute: field '" + field + "' must be a number");
        }
        Number a = (Number) fields.get("a");
        Number b = (Number) fields.get("b");
        if (operation.equals("divide") && b.doubleValue() == 0) throw Refusal.badArgs("compute: division by zero");
        Number value = a instanceof Double || b instanceof Double || operation.equals("divide")
                ? compute((String) operation, a.doubleValue(), b.doubleValue())
                : compute((String) operation, new BigInteger(a.toString()), new BigInteger(b.toString()));
        if (!Double.isFinite(value.doubleValue())) throw Refusal.badArgs("compute: result is not a finite number");
        Map<String, Object> inputs = new LinkedHashMap<>();
        inputs.put("a", a);
        inputs.put("b", b);
        result.put("operation", operation);
        result.put("inputs", inputs);
        result.put("result", value);
    }

    private static Number compute(String operation, double a, double b) {
        return switch (operation) {
            case "add" -> a + b;
            case "subtract" -> a - b;
            case "multiply" -> a * b;
            default -> a / b;
        };
    }

    private static Number compute(String operation, BigInteger a, BigInteger b) {
        return switch (operation) {
            case "add" -> a.add(b);
            case "subtract" -> a.subtract(b);
            default -> a.multiply(b);
        };
    }
}

// ----------------------------------------------------------------------------------------------- the worker

/** Reads requests, runs them in order, writes each reply as soon as it exists. */
final class Worker {
    private static final List<String> CAPABILITIES =
            List.of("errors", "pipeline", "session", "deadline", "attachments", "batch", "log", "claim");
    private static final long BATCH_WAIT_NS = 1_000_000; // PROTOCOL.md, "batch"

    final Registry registry = new Registry();
    String workerId = "unknown";
    long count;
    private final long began = System.currentTimeMillis();
    private final Input input;
    private final Output output;
    private final InputStream claims;
    private final String handlers;
    private final Map<String, Object> workerState = new HashMap<>();
    private final Map<String, Map<String, Object>> sessions = new HashMap<>();
    private final List<String> agreed = new ArrayList<>();
    private int level;
    private boolean started;
    private volatile boolean logAgreed;
    // INVARIANT: whole frames of the main thread that wait to be written together; none while it waits for the
    // pipe, and while a handler runs only those of its own batch.
    private final Text held = new Text(SnakepitBridge.CHUNK_BYTES);

    Worker(Descriptors descriptors, String handlers) {
        this.input = new Input(descriptors.requests);
        this.output = new Output(descriptors.replies);
        this.claims = descriptors.claims;
        this.handlers = handlers;
        BuiltIn.addTo(registry.commands, this);
    }

    double uptime() {
        return (System.currentTimeMillis() - began) / 1000.0;
    }

    /** Serve until the request stream ends; returns the exit status. */
    int run() {
        int status = -1;
        while (status < 0) {
            try {
                if (!input.hasFrame()) flush();
                status = input.readFrame() ? serveFrame() : 0;
            } catch (FramingError error) {
                flush();
                badFrame(null, error.getMessage());
                status = 2;
            } catch (IOException error) {
                SnakepitBridge.complain("cannot read requests: " + Errors.text(error));
                status = 2;
            } catch (Throwable error) {
                input.data = null; // the last words need memory
                throw error;
            }
        }
        input.finish();
        return status;
    }

    private int serveFrame() throws IOException, FramingError {
        Map<?, ?> message;
        long id;
        try {
            Object parsed = JsonReader.parse(input.data, input.from, input.to);
            if (!(parsed instanceof Map<?, ?> map)) throw new BadJson("not an object");
            message = map;
            if (!message.containsKey("command") && message.containsKey("type")) {
                if ("session_end".equals(message.get("type"))) sessions.remove(message.get("session"));
                return -1;
            }
            if (!(message.get("id") instanceof Long number)) throw new BadJson("no integer id");
            id = number;
        } catch (BadJson error) {
            badFrame(input, error.getMessage());
            return -1;
        }
        if (!started) return start(id, message);
        serve(id, message);
        return -1;
    }

    // Requests

    private void serve(long id, Map<?, ?> sent) throws IOException, FramingError {
        Map<?, ?> message = sent;
        Refusal problem = null;
        if (level > 0) problem = takeAttachments(message);
        else {
            message = new HashMap<>(sent);
            message.keySet().retainAll(List.of("command", "args")); // the rest has no meaning there
        }
        Object args = message.containsKey("args") ? message.get("args") : new LinkedHashMap<>();
        boolean claim = Boolean.TRUE.equals(message.get("claim"));
        if (problem == null) problem = findProblem("request " + id + ": ", message);
        Handler handler = problem == null ? registry.commands.get(message.get("command")) : null;
        String session = message.get("session") instanceof String name ? name : null;
        Double budget = message.get("deadline_ms") instanceof Number number ? number.doubleValue() : null;
        Long deadline = budget == null ? null : (Long) (System.nanoTime() + (long) (budget * 1e6));
        if (!(message.get("batch") instanceof List<?> batch) || batch.isEmpty()) {
            if (claim && !claim(id, -1, problem)) return;
            answer(new Request(this, id, -1, session, deadline), handler, args, problem);
            return;
        }
        long since = System.nanoTime();
        for (int index = 0; index < batch.size(); index++) {
            long now = System.nanoTime();
            if (index == 0 || now - since > BATCH_WAIT_NS) {
                flush();
                since = now;
            }
            if (claim && !claim(id, index, problem)) continue;
            answer(new Request(this, id, index, session, deadline), handler, batch.get(index), problem);
        }
        flush();
    }

    private Refusal findProblem(String request, Map<?, ?> message) {
        Object session = message.get("session");
        Object budget = message.get("deadline_ms");
        Object batch = message.get("batch");
        boolean isDeadline = budget == null || budget instanceof Number;
        if (!isDeadline) return Refusal.badArgs(request + "'deadline_ms' must be a number");
        boolean isSession = session == null || session instanceof String;
        if (!isSession) return Refusal.badArgs(request + "'session' must be a string");
        if (message.containsKey("batch")) {
            if (!(batch instanceof List<?> items)) return Refusal.badArgs(request + "'batch' must be an array");
            if (items.isEmpty()) return Refusal.badArgs(request + "'batch' must not be empty");
        }
        if (!(message.get("command") instanceof String name)) {
            return Refusal.badArgs(request + "'command' must be a string");
        }
        return registry.commands.containsKey(name) ? null : registry.unknown(name);
    }

    /** Take the byte that stands for one item; false, the item answered, when the host has taken it back. */
    private boolean claim(long id, int index, Refusal problem) {
        if (claims == null) {
            Refusal missing = new Refusal("internal", "ProtocolError", "claim: this worker has no SNAKEPIT_CLAIM_FD");
            replyError(id, index, problem == null ? missing : problem);
            return false;
        }
        try {
            if (claims.read() >= 0) return true;
        } catch (IOException wouldBlock) {
            // An empty pipe: Java has no other word for it.
        }
        int at = held.open();
        held.ascii("{\"id\":").integer(id).ascii(",\"type\":\"recalled\"");
        if (index >= 0) held.ascii(",\"index\":").integer(index);
        held.ascii("}").close(at);
        sent(Math.max(index, 0)); // those in a row leave together, at the latest before anything else runs
        return false;
    }

    private void answer(Request request, Handler handler, Object args, Refusal problem) {
        count++;
        if (problem != null) {
            replyError(request.id, request.index, problem);
            return;
        }
        if (request.index < 0) flush();
        Object result;
        try {
            input.begin();
            result = handler.call(args, request);
            if (result instanceof CompletionStage<?> stage) result = stage.toCompletableFuture();
            if (result instanceof Future<?> future) {
                flush();
                result = await(future);
            }
        } catch (Throwable error) {
            settle(request);
            replyError(request.id, request.index, error);
            return;
        }
        settle(request);
        reply(request.id, request.index, result);
    }

    private void settle(Request request) {
        input.end();
        synchronized (output) {
            request.ended = true;
        }
        Thread.interrupted(); // of this request, not of the next
    }

    private static Object await(Future<?> result) throws Throwable {
        try {
            return result.get();
        } catch (ExecutionException error) {
            throw error.getCause();
        }
    }

    /** Read the raw frames that follow a message and put them in place. */
    private Refusal takeAttachments(Map<?, ?> message) throws IOException, FramingError {
        Object listed = message.get("attachments");
        if (listed == null) return null;
        List<?> entries = listed instanceof List<?> list ? list : Arrays.asList((Object) null);
        for (Object entry : entries) {
            Object size = entry instanceof Map<?, ?> map ? map.get("len") : null;
            if (!(size instanceof Long length) || length < 0 || length > Integer.MAX_VALUE - 8) {
                throw new FramingError("attachments without a usable 'len': the frames that follow cannot be counted");
            }
        }
        Refusal problem = null;
        flush();
        for (Object each : entries) {
            Map<?, ?> entry = (Map<?, ?>) each;
            byte[] bytes = new byte[((Long) entry.get("len")).intValue()];
            input.readRaw(bytes);
            Object path = entry.get("path");
            String reason = "bytes".equals(entry.get("kind")) ? place(message, path, bytes) : "its kind is not 'bytes'";
            if (reason != null && problem == null) {
                String shown = path instanceof String text ? "'" + Errors.shorten(text, 200) + "'" : "without a path";
                problem = Refusal.badArgs("attachment " + shown + ": " + reason);
            }
        }
        return problem;
    }

    /** Set the null at a JSON pointer to the bytes; returns the reason if that is impossible. */
    @SuppressWarnings("unchecked")
    private static String place(Object message, Object pointer, byte[] bytes) {
        if (!(pointer instanceof String path) || !path.startsWith("/")) return "not a JSON pointer";
        String[] steps = path.substring(1).split("/", -1);
        Object target = message;
        for (int i = 0; i < steps.length; i++) {
            String step = steps[i].replace("~1", "/").replace("~0", "~");
            boolean last = i == steps.length - 1;
            if (target instanceof Map) {
                Map<String, Object> map = (Map<String, Object>) target;
                if (!map.containsKey(step)) return "it leads nowhere";
                if (last && map.get(step) == null) {
                    map.put(step, bytes);
                    return null;
                }
                target = map.get(step);
            } else if (target instanceof List) {
                List<Object> list = (List<Object>) target;
                int index = step.matches("0|[1-9][0-9]{0,8}") ? Integer.parseInt(step) : list.size();
                if (index >= list.size()) return "it leads nowhere";
                if (last && list.get(index) == null) {
                    list.set(index, bytes);
                    return null;
                }
                target = list.get(index);
            } else return "it leads nowhere";
        }
        return "the place does not hold null";
    }

    // Start

    /** Agree on a protocol, load the handlers, run the start; returns the exit status, or -1 to go on. */
    private int start(long id, Map<?, ?> message) throws IOException, FramingError {
        started = true;
        boolean isPing = "ping".equals(message.get("command")) && message.get("args") instanceof Map;
        Map<?, ?> args = isPing ? (Map<?, ?>) message.get("args") : Map.of();
        boolean offered;
        Request request = new Request(this, id, -1, null, null);
        try {
            input.begin();
            offered = negotiate(args.get("protocol"));
            if (args.get("worker_id") instanceof String name) workerId = name;
            load(args.get("start_args"), request);
        } catch (Throwable error) {
            settle(request);
            replyError(id, -1, error);
            return 1;
        }
        settle(request);
        if (!offered) {
            serve(id, message);
            return -1;
        }
        count++;
        @SuppressWarnings("unchecked")
        Map<String, Object> result = (Map<String, Object>) ((BuiltIn) registry.commands.get("ping")).call(args, null);
        result.put("protocol", handshake(true));
        if (attempt(id, -1, result) > 0) { // better a start without descriptions than none
            result.put("protocol", handshake(false));
            reply(id, -1, result);
        }
        logAgreed = agreed.contains("log");
        return -1;
    }

    private boolean negotiate(Object offer) {
        if (!(offer instanceof Map<?, ?> terms)) return false;
        if (!(terms.get("versions") instanceof List<?> versions) || !versions.contains(1L)) return false;
        level = 1;
        Object maxFrame = terms.get("max_frame");
        if (!terms.containsKey("max_frame")) maxFrame = (long) SnakepitBridge.DEFAULT_MAX_FRAME;
        if (!(maxFrame instanceof Long limit) || limit < 1) {
            throw Refusal.badArgs("ping: protocol.max_frame must be an integer >= 1");
        }
        input.maxFrame = (int) Math.min(limit, SnakepitBridge.LARGEST_MAX_FRAME);
        List<?> theirs = terms.get("capabilities") instanceof List<?> names ? names : List.of();
        for (String name : CAPABILITIES) {
            if (theirs.contains(name) && (claims != null || !name.equals("claim"))) agreed.add(name);
        }
        return true;
    }

    private Map<String, Object> handshake(boolean fully) {
        Map<String, Object> commands = new LinkedHashMap<>();
        for (Handler handler : registry.commands.values()) {
            Map<String, Object> entry = new LinkedHashMap<>();
            entry.put("params", handler.params);
            entry.put("doc", fully ? handler.doc : "");
            if (fully && handler.schema != null) entry.put("schema", handler.schema);
            commands.put(handler.name, entry);
        }
        Map<String, Object> reply = new LinkedHashMap<>();
        reply.put("version", 1);
        reply.put("max_frame", input.maxFrame);
        reply.put("capabilities", agreed);
        reply.put("language", "java");
        reply.put("runtime", System.getProperty("java.version"));
        reply.put("bridge", SnakepitBridge.VERSION);
        // The launcher knows it: to ask Java takes a fifth of a start.
        Long pid = Long.getLong("snakepit.pid");
        reply.put("pid", pid == null ? (Long) ProcessHandle.current().pid() : pid);
        reply.put("commands", commands);
        return reply;
    }

    private void load(Object startArgs, Request request) throws Throwable {
        if (handlers != null) registry.load(handlers, System.getProperty("snakepit.index"));
        if (Boolean.getBoolean("snakepit.dump")) { // a start for the sake of the shared archive runs no user code
            registry.touch();
            return;
        }
        registry.initialize();
        if (startArgs != null && registry.starters.isEmpty()) {
            throw Refusal.badArgs("start_args were given, but the handlers define no @OnStart method");
        }
        for (MethodHandler starter : registry.starters) {
            Object result = starter.call(startArgs, request);
            if (result instanceof CompletionStage<?> stage) await(stage.toCompletableFuture());
        }
    }

    // Replies

    private void flush() {
        if (held.size == 0) return;
        output.write(held, List.of(), input.maxFrame);
        held.clear();
    }

    private void head(long id, int index, boolean success) {
        held.ascii("{\"id\":").integer(id);
        if (index >= 0) held.ascii(",\"index\":").integer(index);
        held.ascii(success ? ",\"success\":true,\"result\":" : ",\"success\":false,\"error\":");
    }

    private void tail() {
        if (level == 0) held.ascii(",\"timestamp\":\"").ascii(now()).ascii("\"");
        held.ascii("}");
    }

    private static String now() {
        return Instant.now().truncatedTo(ChronoUnit.MILLIS).toString();
    }

    private void reply(long id, int index, Object result) {
        int size = attempt(id, index, result);
        if (size == 0) return;
        String limit = "; the limit is " + input.maxFrame + " (max_frame)";
        String message = "the encoded reply has " + size + " bytes" + limit;
        replyError(id, index, new Refusal("too_large", "ResultTooLarge", message));
    }

    /** Reply unless that is too large; returns the size then, else 0. */
    private int attempt(long id, int index, Object result) {
        List<byte[]> attachments = agreed.contains("attachments") ? new ArrayList<>(0) : null;
        List<String> paths = new ArrayList<>(0);
        int at = held.open();
        try {
            head(id, index, true);
            held.value(result, "result", attachments, paths);
            if (!paths.isEmpty()) {
                held.ascii(",\"attachments\":[");
                for (int i = 0; i < paths.size(); i++) {
                    held.ascii(i == 0 ? "{\"path\":" : ",{\"path\":").plain(paths.get(i));
                    held.ascii(",\"kind\":\"bytes\",\"len\":").integer(attachments.get(i).length).ascii("}");
                }
                held.ascii("]");
            }
            tail();
        } catch (Throwable error) {
            held.size = at;
            String message = "result: reading it raised " + Errors.type(error) + ": " + Errors.text(error);
            Refusal unreadable = new Refusal("encode_error", "EncodeError", message);
            replyError(id, index, error instanceof Refusal ? error : unreadable);
            return 0;
        }
        int size = held.close(at);
        if (size > input.maxFrame) {
            held.size = at;
            return size;
        }
        if (paths.isEmpty()) sent(index);
        else {
            output.write(held, attachments, input.maxFrame);
            held.clear();
        }
        return 0;
    }

    /** A reply is complete: it leaves now, or with the others of its batch. */
    private void sent(int index) {
        if (index < 0 || held.size > SnakepitBridge.CHUNK_BYTES) flush();
    }

    private void replyError(Long id, int index, Throwable error) {
        int at = held.size;
        boolean complete = false;
        try {
            complete = sendError(id, index, Errors.describe(error));
        } catch (Throwable second) {
            held.size = at; // out of memory: there may be enough for less
        }
        if (!complete) {
            Map<String, Object> report = Errors.describeBriefly(error);
            String message = Errors.shorten((String) report.get("message"), Math.max(16, input.maxFrame / 8));
            report.put("message", Errors.cap(message));
            sendError(id, index, report);
        }
        sent(index);
    }

    private boolean sendError(Long id, int index, Map<String, Object> report) {
        int at = held.open();
        if (id == null) held.ascii("{\"id\":null,\"success\":false,\"error\":");
        else head(id, index, false);
        held.plain(agreed.contains("errors") ? report : report.get("message"));
        tail();
        boolean fits = held.close(at) <= input.maxFrame;
        if (!fits) held.size = at;
        return fits;
    }

    /** Answer what is no request, with its id if one can be seen, and say so on stderr. */
    private void badFrame(Input seen, String reason) {
        Long id = null;
        String message = "bad frame: " + reason;
        if (seen != null) {
            int length = Math.min(seen.to - seen.from, 4096);
            String text = new String(seen.data, seen.from, length, StandardCharsets.ISO_8859_1);
            Matcher match = Pattern.compile("[{,]\\s*\"id\"\\s*:\\s*([0-9]{1,16})\\s*[,}]").matcher(text);
            if (match.find()) id = Long.valueOf(match.group(1));
            message += "; bytes seen: '" + Errors.escape(seen.data, seen.from, seen.to) + "'";
        }
        SnakepitBridge.complain(message);
        replyError(id, -1, new Refusal("internal", "BadFrame", Errors.cap(message)));
    }

    void log(Request request, String level, String message, Map<String, ?> fields) {
        Text text = new Text(256);
        int at = text.open();
        text.ascii("{\"type\":\"log\",\"id\":").integer(request.id);
        text.ascii(",\"level\":").plain(Errors.cap(String.valueOf(level)));
        text.ascii(",\"message\":").plain(Errors.cap(String.valueOf(message))).ascii(",\"fields\":");
        int body = text.size;
        try {
            text.value(fields == null ? Map.of() : fields, "fields", null, null);
        } catch (RuntimeException unencodable) {
            text.size = body;
            Map<String, Object> shown = new LinkedHashMap<>();
            fields.forEach((key, value) -> shown.put(Errors.cap("" + key), Errors.cap("" + value)));
            text.plain(shown);
        }
        text.ascii("}");
        boolean fits = text.close(at) <= input.maxFrame;
        synchronized (output) {
            if (logAgreed && fits && !request.ended) {
                output.write(text, List.of(), input.maxFrame);
                return;
            }
        }
        String shown = fields == null || fields.isEmpty() ? "" : " " + fields;
        SnakepitBridge.complain(("[" + level + "] " + message + shown).replace("\n", "\\n"));
    }

    /** One request, or one item of a batch, as its handler sees it. */
    private static final class Request implements SnakepitBridge.Context {
        final long id;
        final int index;
        boolean ended; // LOCK: the output
        private final Worker worker;
        private final String session;
        private final Long deadline; // System.nanoTime(), null without a limit
        private Map<String, Object> state;

        Request(Worker worker, long id, int index, String session, Long deadline) {
            this.worker = worker;
            this.id = id;
            this.index = index;
            this.session = session;
            this.deadline = deadline;
        }

        @Override
        public String sessionId() {
            return session;
        }

        @Override
        public String workerId() {
            return worker.workerId;
        }

        @Override
        public Double deadline() {
            return deadline == null ? null : (Double) Math.max(0, (deadline - System.nanoTime()) / 1e9);
        }

        @Override
        public Map<String, Object> state() {
            if (state == null) {
                state = session == null ? null : worker.sessions.get(session);
                if (state == null) state = new HashMap<>();
                if (session != null) worker.sessions.put(session, state);
            }
            return state;
        }

        @Override
        public Map<String, Object> workerState() {
            return worker.workerState;
        }

        @Override
        public void log(String message, String level, Map<String, ?> fields) {
            worker.log(this, level, message, fields);
        }
    }
}
