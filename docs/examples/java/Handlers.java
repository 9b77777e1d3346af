import java.util.HashMap;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import snakepit.SnakepitBridge.*;

/** A word count that the JVM compiles to machine code once it has run for a while. */
public class Handlers {
    private static final Pattern WORD = Pattern.compile("\\p{L}+");

    @Command(doc = "Count the words of a text, several times over; return how often the most frequent one occurs.")
    int most(String text, int times) {
        int most = 0;
        for (int round = 0; round < times; round++) {
            Map<String, Integer> counts = new HashMap<>();
            Matcher words = WORD.matcher(text.toLowerCase());
            while (words.find()) most = Math.max(most, counts.merge(words.group(), 1, Integer::sum));
        }
        return most;
    }
}
