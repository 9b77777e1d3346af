import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import snakepit.SnakepitBridge.Command;
import snakepit.SnakepitBridge.Context;
import snakepit.SnakepitBridge.OnStart;

/** The commands that transcripts and misuse tests expect of a Java bridge; handlers.py has the same. */
public class Handlers {
    @SuppressWarnings("serial")
    static class Inner extends Exception {
        Inner(String message) {
            super(message);
        }
    }

    @SuppressWarnings("serial")
    static class Failure extends Exception {
        public Map<String, Object> data;

        Failure(String message, Throwable cause) {
            super(message, cause);
        }
    }

    @OnStart
    void begin(Object args, Context ctx) throws Failure {
        if (args instanceof Map<?, ?> map && Boolean.TRUE.equals(map.get("fail"))) throw new Failure("cannot start", null);
        ctx.workerState().put("start_args", args);
    }

    @Command
    Object started(Context ctx) {
        return ctx.workerState().get("start_args");
    }

    @Command(doc = "Return the value.")
    Object identity(Object value) {
        return value;
    }

    @Command
    Object later(Object value) {
        return CompletableFuture.supplyAsync(() -> value);
    }

    @Command
    void fail(Optional<String> message) throws Failure {
        Failure failure = new Failure(message.orElse("boom"), new Inner("deep down"));
        failure.data = Map.of("field", "name");
        throw failure;
    }

    @Command
    Object count(Context ctx) {
        return ctx.state().merge("count", 1, (old, one) -> (int) old + (int) one);
    }

    @Command
    Object whoami(Context ctx) {
        Map<String, Object> answer = new HashMap<>();
        answer.put("session", ctx.sessionId());
        answer.put("worker", ctx.workerId());
        return answer;
    }

    @Command
    Double deadline(Context ctx) {
        return ctx.deadline();
    }

    @Command("log_line")
    String logLine(String message, String level, Map<String, Object> fields, Context ctx) {
        ctx.log(message, level, fields);
        return "logged";
    }

    @Command
    Object unencodable(String kind) {
        Map<String, Object> cycle = new HashMap<>();
        cycle.put("self", cycle);
        Object deep = List.of();
        for (int i = 0; i < 300; i++) deep = List.of(deep);
        Object value = switch (kind) {
            case "nan" -> Double.NaN;
            case "infinity" -> Double.POSITIVE_INFINITY;
            case "lone surrogate" -> "x\ud800";
            case "cycle" -> cycle;
            case "deep" -> deep;
            default -> new Object();
        };
        return Map.of("a", List.of(value));
    }

    @Command
    String text(int size) {
        return "x".repeat(size);
    }

    @Command
    byte[] blob(int size) {
        byte[] bytes = new byte[size];
        for (int i = 0; i < size; i++) bytes[i] = (byte) i;
        return bytes;
    }

    @Command("nested_blobs")
    Object nestedBlobs() {
        Map<String, Object> inner = new java.util.LinkedHashMap<>();
        inner.put("empty", new byte[0]);
        inner.put("two", new byte[] {0, 1});
        Map<String, Object> result = new java.util.LinkedHashMap<>();
        result.put("a/b", List.of("one".getBytes()));
        result.put("t~", inner);
        result.put("n", null);
        return result;
    }

    @Command
    byte[] reverse(byte[] data) {
        byte[] reversed = new byte[data.length];
        for (int i = 0; i < data.length; i++) reversed[i] = data[data.length - 1 - i];
        return reversed;
    }

    @Command
    Object sizes(List<Object> items) {
        List<Integer> sizes = new ArrayList<>();
        for (Object item : items) sizes.add(item instanceof byte[] bytes ? bytes.length : ((String) item).length());
        return sizes;
    }

    @Command
    Object typed(int[] whole, List<Double> real, Optional<Boolean> flag, Map<String, Long> named) {
        double sum = 0;
        for (int item : whole) sum += item;
        for (double item : real) sum += item;
        for (long item : named.values()) sum += item;
        return List.of(sum, flag.map(String::valueOf).orElse("absent"));
    }

    @Command
    static String print_text(String line) {
        System.out.println(line);
        return "printed";
    }

    /** Write to descriptor 1 as native code would: Java has no such call, but its children do. */
    @Command("write_fd_1")
    String writeDescriptor1(String line) throws Exception {
        run(new ProcessBuilder("printf", "%s", line).redirectOutput(ProcessBuilder.Redirect.INHERIT));
        return "written";
    }

    @Command("child_reads_stdin")
    String childReadsStdin() throws Exception {
        return run(new ProcessBuilder("cat").redirectInput(ProcessBuilder.Redirect.INHERIT));
    }

    @Command("child_sees")
    List<String> childSees() throws Exception {
        String script = "ls -l /proc/self/fd | grep -c pipe: ; env | grep -c '^SNAKEPIT_.*FD'";
        ProcessBuilder child = new ProcessBuilder("sh", "-c", script);
        return List.of(run(child.redirectInput(new java.io.File("/dev/null"))).split("\\s+"));
    }

    private static String run(ProcessBuilder builder) throws Exception {
        Process child = builder.redirectError(ProcessBuilder.Redirect.INHERIT).start();
        String output = new String(child.getInputStream().readAllBytes());
        child.waitFor();
        return output;
    }

    @Command
    void hang(Context ctx) throws InterruptedException {
        ctx.log("hanging");
        new CountDownLatch(1).await();
    }

    /** Compute for so many milliseconds; with null, wait for ever. */
    @Command
    Object stall(Long ms) throws InterruptedException {
        if (ms == null) new CountDownLatch(1).await();
        long until = System.nanoTime() + ms * 1_000_000;
        while (System.nanoTime() < until) Thread.onSpinWait();
        return ms;
    }

    /** Wait for ever with null, in a future. */
    @Command("stall_later")
    Object stallLater(Long ms) {
        return ms == null ? new CompletableFuture<>() : CompletableFuture.completedFuture(ms);
    }

    @Command
    long pid() {
        return ProcessHandle.current().pid();
    }
}
