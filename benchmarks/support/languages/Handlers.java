import snakepit.SnakepitBridge.Command;

public class Handlers {
    @Command
    Object mirror(Object value) {
        return value;
    }
}
