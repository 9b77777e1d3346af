// The commands that transcripts and misuse tests expect of a Go worker; handlers.py has the same.
package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"snakepit"
)

type Inner struct{}

func (*Inner) Error() string { return "deep down" }

type Failure struct {
	message string
	cause   error
	data    any
}

func (f *Failure) Error() string { return f.message }
func (f *Failure) Unwrap() error { return f.cause }
func (f *Failure) Data() any     { return f.data }

type None struct{}

type Value struct {
	Value any `json:"value"`
}

type Size struct {
	Size int `json:"size"`
}

type Line struct {
	Line string `json:"line"`
}

type Thing struct{ hidden int }

func unencodable(kind string) any {
	cycle := map[string]any{}
	cycle["self"] = cycle
	deep := []any{}
	for i := 0; i < 300; i++ {
		deep = []any{deep}
	}
	values := map[string]any{
		"nan":            math.NaN(),
		"infinity":       math.Inf(1),
		"lone surrogate": "x\xed\xa0\x80",
		"cycle":          cycle,
		"deep":           deep,
		"object":         Thing{1},
		"channel":        make(chan int),
		"date":           time.Unix(0, 0),
		"bad UTF-8":      "x\xff",
		"integer keys":   map[int]int{1: 1},
	}
	return map[string]any{"a": []any{values[kind]}}
}

func identity(args Value, _ *snakepit.Context) (any, error) { return args.Value, nil }

// stall computes for so many milliseconds; with null, it waits for ever.
func stall(args struct {
	MS *int64 `json:"ms"`
}, _ *snakepit.Context) (any, error) {
	if args.MS == nil {
		select {}
	}
	for until := time.Now().Add(time.Duration(*args.MS) * time.Millisecond); time.Now().Before(until); {
	}
	return *args.MS, nil
}

func register() {
	snakepit.OnStart(func(args map[string]any, ctx *snakepit.Context) error {
		if args["fail"] == true {
			return &Failure{message: "cannot start"}
		}
		if args != nil {
			ctx.WorkerState["start_args"] = args
		}
		return nil
	})
	snakepit.Command("started", func(_ None, ctx *snakepit.Context) (any, error) {
		return ctx.WorkerState["start_args"], nil
	})
	snakepit.Command("identity", identity)
	snakepit.Command("later", identity)
	snakepit.Command("fail", func(args struct {
		Message string `json:"message,omitempty"`
	}, _ *snakepit.Context) (any, error) {
		if args.Message == "" {
			args.Message = "boom"
		}
		return nil, &Failure{args.Message, &Inner{}, map[string]any{"field": "name"}}
	})
	snakepit.Command("count", func(_ None, ctx *snakepit.Context) (int, error) {
		count, _ := ctx.State["count"].(int)
		ctx.State["count"] = count + 1
		return count + 1, nil
	})
	snakepit.Command("whoami", func(_ None, ctx *snakepit.Context) (any, error) {
		reply := map[string]any{"session": nil, "worker": ctx.WorkerID}
		if session, ok := ctx.Session(); ok {
			reply["session"] = session
		}
		return reply, nil
	})
	snakepit.Command("deadline", func(_ None, ctx *snakepit.Context) (any, error) {
		deadline, ok := ctx.Deadline()
		if !ok {
			return nil, nil
		}
		return math.Max(0, time.Until(deadline).Seconds()), nil
	})
	snakepit.Command("log_line", func(args struct {
		Message string         `json:"message"`
		Level   string         `json:"level"`
		Fields  map[string]any `json:"fields"`
	}, ctx *snakepit.Context) (any, error) {
		ctx.Log(args.Message, args.Level, args.Fields)
		return "logged", nil
	})
	snakepit.Command("unencodable", func(args struct {
		Kind string `json:"kind"`
	}, _ *snakepit.Context) (any, error) {
		return unencodable(args.Kind), nil
	})
	snakepit.Command("text", func(args Size, _ *snakepit.Context) (string, error) {
		return strings.Repeat("x", args.Size), nil
	})
	snakepit.Command("blob", func(args Size, _ *snakepit.Context) ([]byte, error) {
		data := make([]byte, args.Size)
		for i := range data {
			data[i] = byte(i)
		}
		return data, nil
	})
	snakepit.Command("nested_blobs", func(None, *snakepit.Context) (any, error) {
		inner := map[string][]byte{"empty": {}, "two": {0, 1}}
		return map[string]any{"a/b": [][]byte{[]byte("one")}, "t~": inner, "n": nil}, nil
	})
	snakepit.Command("reverse", func(args struct {
		Data []byte `json:"data"`
	}, _ *snakepit.Context) ([]byte, error) {
		reversed := make([]byte, len(args.Data))
		for i, b := range args.Data {
			reversed[len(reversed)-1-i] = b
		}
		return reversed, nil
	})
	snakepit.Command("sizes", func(args struct {
		Items []any `json:"items"`
	}, _ *snakepit.Context) ([]int, error) {
		sizes := []int{}
		for _, item := range args.Items {
			switch item := item.(type) {
			case []byte:
				sizes = append(sizes, len(item))
			case string:
				sizes = append(sizes, len(item))
			}
		}
		return sizes, nil
	})
	snakepit.Command("print_text", func(args Line, _ *snakepit.Context) (string, error) {
		fmt.Println(args.Line)
		return "printed", nil
	})
	snakepit.Command("write_fd_1", func(args Line, _ *snakepit.Context) (string, error) {
		_, err := syscall.Write(1, []byte(args.Line))
		return "written", err
	})
	snakepit.Command("child_reads_stdin", func(None, *snakepit.Context) (string, error) {
		child := exec.Command("cat")
		child.Stdin = os.Stdin
		seen, err := child.Output()
		return string(seen), err
	})
	snakepit.Command("child_sees", func(None, *snakepit.Context) ([]string, error) {
		script := "ls -l /proc/self/fd | grep -c pipe: ; env | grep -c '^SNAKEPIT_.*FD'"
		child := exec.Command("sh", "-c", script)
		child.Stderr = os.Stderr
		seen, _ := child.Output() // grep's status says whether it found any
		return strings.Fields(string(seen)), nil
	})
	snakepit.Command("hang", func(_ None, ctx *snakepit.Context) (any, error) {
		ctx.Log("hanging", "", nil)
		select {}
	})
	snakepit.Command("stall", stall)
	snakepit.Command("stall_later", stall)
	snakepit.Command("pid", func(None, *snakepit.Context) (int, error) { return os.Getpid(), nil })
	snakepit.Command("panic_text", func(None, *snakepit.Context) (any, error) { panic("just text") })
	snakepit.Command("panic_index", func(args Size, _ *snakepit.Context) (any, error) {
		return []int{}[args.Size], nil
	})
	snakepit.Command("typed", func(args Typed, _ *snakepit.Context) (Typed, error) { return args, nil })
}

type Typed struct {
	Count  int8              `json:"count"`
	Ratio  float64           `json:"ratio,omitempty"`
	Name   *string           `json:"name"`
	Tags   []string          `json:"tags,omitempty"`
	Limits map[string]uint16 `json:"limits,omitempty"`
	Style  *struct {
		Bold bool `json:"bold"`
	} `json:"style"`
}

// The handlers are compiled in: `--handlers` with this program's source chooses them, and another file is one
// that the start cannot use.
func main() {
	for i, option := range os.Args {
		if option != "--handlers" || i+1 == len(os.Args) {
			continue
		}
		file := os.Args[i+1]
		if strings.HasSuffix(file, "main.go") {
			register()
			continue
		}
		snakepit.OnStart(func(any, *snakepit.Context) error {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			return fmt.Errorf("no handlers in %s: %s", file, text)
		})
	}
	if os.Getenv("REGISTER_TWICE") != "" {
		snakepit.Command("again", identity)
		snakepit.Command("again", identity)
	}
	snakepit.Run()
}
