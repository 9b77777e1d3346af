/** What the start of a JVM costs by itself. */
public class Bare {
    public static void main(String[] args) {}
}
