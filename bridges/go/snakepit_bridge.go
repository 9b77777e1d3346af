// Package snakepit makes a Go program a worker of the snakepit pool: it answers framed requests, in order,
// with the program's own functions.
//
//	func main() {
//		snakepit.Command("render", func(args RenderArgs, ctx *snakepit.Context) (any, error) { ... })
//		snakepit.Run()
//	}
//
// Go 1.19 or later, the standard library only, on Unix.  PROTOCOL.md, one folder up, is the normative text.
package snakepit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"os"
	"os/signal"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	bridgeVersion   = "1.0"
	defaultMaxFrame = 64 << 20
	largestMaxFrame = 128<<20 - 1
	maxDepth        = 256 // levels of nesting in a result; the host's limit for args is the same
	maxMessageDepth = 512 // arbitrary: args at the host's limit and the message around them, with room
	maxTextBytes    = 64 << 10
	chunkBytes      = 64 << 10               // the default capacity of a pipe
	maxQueuedBytes  = 2 * defaultMaxFrame    // read ahead while a handler runs, to see the end of the requests
	batchWait       = time.Millisecond       // PROTOCOL.md, "batch"
	eofGrace        = 250 * time.Millisecond // arbitrary: lets a reply that is nearly done leave
)

var capabilities = []string{"errors", "pipeline", "session", "deadline", "attachments", "batch", "log", "claim"}

// ------------------------------------------------------------------------------------ the program's interface

// Command registers a function under a name.
//
// A struct as A takes an object: its fields are the parameters, named as encoding/json names them but matched
// exactly; a pointer or a field with omitempty may be missing.  Any other type takes the args as a whole.
func Command[A, R any](name string, handler func(args A, ctx *Context) (R, error)) {
	place := caller()
	argsType := reflect.TypeOf((*A)(nil)).Elem()
	register(&command{
		name:   name,
		place:  place,
		origin: originOf(handler),
		params: paramsOf(argsType),
		args:   argsType,
		call: func(raw any, ctx *Context) (any, error) {
			var args A
			if err := bindArgs(name, raw, reflect.ValueOf(&args).Elem()); err != nil {
				return nil, err
			}
			return handler(args, ctx)
		},
	})
}

// Doc sets what a command's listing says about it.
func Doc(name, text string) {
	docs[name] = text
}

// OnStart registers a function that runs before the worker is ready; it receives the adapter's start_args.
func OnStart[A any](start func(args A, ctx *Context) error) {
	origin := originOf(start)
	starters = append(starters, &command{
		name:   "on_start",
		origin: origin,
		call: func(raw any, ctx *Context) (any, error) {
			var args A
			if err := bindArgs("on_start", raw, reflect.ValueOf(&args).Elem()); err != nil {
				return nil, err
			}
			return nil, start(args, ctx)
		},
	})
}

// Context is what a handler may know about its request, and keep for later ones.
//
// Its Deadline is the request's; it is cancelled when the handler has returned.
type Context struct {
	context.Context
	WorkerID    string
	WorkerState map[string]any // lives as long as the process
	State       map[string]any // lives as long as the session; without one, as long as the request

	id      int64
	session *string
	cancel  context.CancelFunc
	over    bool // guarded by worker.out.mutex
	worker  *worker
}

// end says that the request is over, also to goroutines that its handler has left behind.
func (c *Context) end() {
	c.cancel()
	c.worker.out.mutex.Lock()
	defer c.worker.out.mutex.Unlock()
	c.over = true
}

// Session returns the session of the request, if it has one.
func (c *Context) Session() (id string, ok bool) {
	if c.session == nil {
		return "", false
	}
	return *c.session, true
}

// Log sends a line to the host; from any goroutine.  An empty level means "info".
func (c *Context) Log(message, level string, fields map[string]any) {
	if level == "" {
		level = "info"
	}
	c.worker.log(c, capped(message), capped(level), fields)
}

// Run serves the host's requests and ends the process; call it last in main.
func Run() {
	if badEnvironment != nil {
		complain(badEnvironment.Error())
		os.Exit(2)
	}
	in, out := frameIn, frameOut
	if in < 0 {
		var err error
		if in, out, err = moveStandardStreams(); err != nil {
			complain("the standard streams: " + err.Error())
			os.Exit(2)
		}
	}
	signal.Ignore(syscall.SIGINT)
	// A closed stdout or stderr would else end the process.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	w := &worker{
		began:    time.Now(),
		id:       "unknown",
		state:    map[string]any{},
		sessions: map[string]map[string]any{},
		commands: map[string]*command{},
		out:      &output{file: os.NewFile(uintptr(out), "replies")},
	}
	w.out.maxFrame = defaultMaxFrame
	w.out.timer = time.AfterFunc(time.Hour, w.out.flush)
	w.out.timer.Stop()
	w.requests = newPump(os.NewFile(uintptr(in), "requests"), w)
	w.in = bufio.NewReaderSize(w.requests, chunkBytes)
	w.live(true)
}

// live serves until the requests end.
func (w *worker) live(onMain bool) {
	// runtime.Goexit in a handler ends this goroutine: another one goes on.  What the program's main has deferred
	// must not run meanwhile.
	defer func() {
		if problem := recover(); problem != nil {
			panic(problem)
		}
		go w.live(false)
		if onMain {
			select {}
		}
	}()
	os.Exit(w.run())
}

type command struct {
	name   string
	place  string // where it was registered, file:line
	origin string // its function, with file:line
	params []string
	args   reflect.Type // nil: the bridge's own
	call   func(args any, ctx *Context) (any, error)
}

var (
	registered    = map[string]*command{}
	starters      []*command
	docs          = map[string]string{}
	badRegistered error
)

func register(c *command) {
	problem := ""
	switch old := registered[c.name]; {
	case c.name == "":
		problem = "a command's name must not be empty"
	case c.name == "ping":
		problem = "command 'ping' belongs to the bridge"
	case old != nil:
		problem = fmt.Sprintf("command '%s' is registered twice, first at %s", c.name, old.place)
	}
	if problem != "" && badRegistered == nil {
		badRegistered = fmt.Errorf("%s: %s", c.place, problem)
	}
	registered[c.name] = c
}

func caller() string {
	_, file, line, _ := runtime.Caller(2)
	return fmt.Sprintf("%s:%d", file, line)
}

func originOf(function any) string {
	info := runtime.FuncForPC(reflect.ValueOf(function).Pointer())
	if info == nil {
		return "?"
	}
	file, line := info.FileLine(info.Entry())
	return fmt.Sprintf("%s\n\t%s:%d", info.Name(), file, line)
}

// ------------------------------------------------------------------------------------------------ descriptors

var (
	frameIn, frameOut, claimFD = -1, -1, -1
	badEnvironment             error
	// The standard files have finalizers that close their descriptors.
	standard = [...]*os.File{os.Stdin, os.Stdout, os.Stderr}
)

// Before main, so that no subprocess of the program inherits the frames.
func init() {
	names, named := os.LookupEnv("SNAKEPIT_FDS")
	claim, claims := os.LookupEnv("SNAKEPIT_CLAIM_FD")
	os.Unsetenv("SNAKEPIT_FDS")
	os.Unsetenv("SNAKEPIT_CLAIM_FD")
	if named {
		first, second, _ := strings.Cut(names, ",")
		frameIn, frameOut = descriptor("SNAKEPIT_FDS", names, first), descriptor("SNAKEPIT_FDS", names, second)
	}
	if claims {
		claimFD = descriptor("SNAKEPIT_CLAIM_FD", claim, claim)
		if badEnvironment == nil {
			badEnvironment = syscall.SetNonblock(claimFD, true)
		}
	}
}

func descriptor(variable, value, text string) int {
	fd, err := strconv.Atoi(text)
	var stat syscall.Stat_t
	if err != nil || fd < 0 || syscall.Fstat(fd, &stat) != nil {
		badEnvironment = fmt.Errorf("%s must name open descriptors, not %q", variable, value)
		return -1
	}
	syscall.CloseOnExec(fd)
	return fd
}

// Without SNAKEPIT_FDS the frames are on 0 and 1: the null device and stderr take these places.
func moveStandardStreams() (in, out int, err error) {
	if in, err = syscall.Dup(0); err != nil {
		return
	}
	syscall.CloseOnExec(in)
	if out, err = syscall.Dup(1); err != nil {
		return
	}
	syscall.CloseOnExec(out)
	// Not every system has Dup2, but a new descriptor has the lowest free number everywhere.
	syscall.Close(0)
	if _, err = syscall.Open(os.DevNull, syscall.O_RDWR, 0); err != nil {
		return
	}
	syscall.Close(1)
	if _, err = syscall.Dup(2); err != nil {
		_, err = syscall.Dup(0)
	}
	return
}

func complain(line string) {
	os.Stderr.WriteString("snakepit_bridge: " + line + "\n") // a closed stderr is nobody's reader
}

// pump reads ahead of the frames' reader, so that the end of the requests is seen while a handler runs.
type pump struct {
	mutex  sync.Mutex
	change *sync.Cond
	chunks [][]byte
	queued int
	err    error
	spare  [][]byte
	rest   []byte // of the chunk that is being read
	whole  []byte
}

func newPump(file *os.File, w *worker) *pump {
	p := &pump{}
	p.change = sync.NewCond(&p.mutex)
	go p.fill(file, w)
	return p
}

func (p *pump) fill(file *os.File, w *worker) {
	for {
		p.mutex.Lock()
		for p.queued > maxQueuedBytes {
			p.change.Wait()
		}
		var chunk []byte
		if last := len(p.spare) - 1; last >= 0 {
			chunk, p.spare = p.spare[last], p.spare[:last]
		}
		p.mutex.Unlock()
		if chunk == nil {
			chunk = make([]byte, chunkBytes)
		}
		count, err := file.Read(chunk)
		p.mutex.Lock()
		if count > 0 {
			p.chunks = append(p.chunks, chunk[:count])
			p.queued += count
		}
		p.err = err
		p.change.Broadcast()
		p.mutex.Unlock()
		if err != nil {
			break
		}
	}
	time.Sleep(eofGrace)
	// RACE: the handler that runs now is ended here; one that begins later sees graceOver.
	w.graceOver.Store(true)
	if w.busy.Load() {
		os.Exit(0)
	}
}

func (p *pump) Read(into []byte) (int, error) {
	if len(p.rest) == 0 {
		p.mutex.Lock()
		if p.whole != nil && len(p.spare) < 4 {
			p.spare = append(p.spare, p.whole)
		}
		p.whole = nil
		for len(p.chunks) == 0 && p.err == nil {
			p.change.Wait()
		}
		if len(p.chunks) == 0 {
			p.mutex.Unlock()
			return 0, p.err
		}
		p.rest = p.chunks[0]
		p.whole = p.rest[:cap(p.rest)]
		p.chunks[0] = nil
		p.chunks = p.chunks[1:]
		p.queued -= len(p.rest)
		p.change.Broadcast()
		p.mutex.Unlock()
	}
	count := copy(into, p.rest)
	p.rest = p.rest[count:]
	return count, nil
}

// output writes whole frames.
type output struct {
	file *os.File
	// LOCK: guards what follows and one whole message on the descriptor; never held while calling out.
	mutex    sync.Mutex
	held     []byte // INVARIANT: whole frames that wait to be written together; none while the worker waits
	maxFrame int    // written once, by the handshake
	timer    *time.Timer
}

func (o *output) write(data []byte) {
	if _, err := o.file.Write(data); err != nil {
		if errors.Is(err, syscall.EPIPE) {
			os.Exit(0)
		}
		complain("cannot write a reply: " + err.Error())
		os.Exit(2)
	}
}

func (o *output) flushLocked() {
	if len(o.held) > 0 {
		o.write(o.held)
		o.held = o.held[:0]
	}
}

func (o *output) flush() {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.flushLocked()
}

// send writes a message whose first four bytes are free for its length, and raw bytes after it.
func (o *output) send(message []byte, hold bool, blobs ...[]byte) {
	binary.BigEndian.PutUint32(message, uint32(len(message)-4))
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if hold && len(blobs) == 0 && len(o.held)+len(message) <= chunkBytes {
		o.held = append(o.held, message...)
		return
	}
	o.flushLocked()
	if hold && len(blobs) == 0 && len(message) <= chunkBytes {
		o.held = append(o.held, message...)
		return
	}
	o.write(message)
	for _, blob := range blobs {
		for len(blob) > 0 {
			size := len(blob)
			if size > o.maxFrame {
				size = o.maxFrame
			}
			var head [4]byte
			binary.BigEndian.PutUint32(head[:], uint32(size))
			o.write(head[:])
			o.write(blob[:size])
			blob = blob[size:]
		}
	}
}

// ------------------------------------------------------------------------------------------------ strict JSON

// parser reads strict JSON that is valid UTF-8.
//
// Values are nil, bool, string, []any, map[string]any; an integer is an int64, or a *big.Int where that is too
// small; every other number is a float64.
type parser struct {
	text  []byte
	at    int
	depth int
}

func parse(text []byte) (any, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("not UTF-8")
	}
	p := parser{text: text}
	value, err := p.value()
	if err != nil {
		return nil, err
	}
	if p.space(); p.at < len(text) {
		return nil, p.unexpected("trailing text")
	}
	return value, nil
}

func (p *parser) unexpected(what string) error {
	return fmt.Errorf("%s at byte %d", what, p.at)
}

func (p *parser) space() {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// next skips space and returns the byte there, or 0 at the end of the text.
func (p *parser) next() byte {
	p.space()
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *parser) word(word string, value any) (any, error) {
	if bytes.HasPrefix(p.text[p.at:], []byte(word)) {
		p.at += len(word)
		return value, nil
	}
	return nil, p.unexpected("no JSON value")
}

func (p *parser) value() (any, error) {
	switch c := p.next(); c {
	case '{':
		return p.object()
	case '[':
		return p.array()
	case '"':
		return p.str()
	case 't':
		return p.word("true", true)
	case 'f':
		return p.word("false", false)
	case 'n':
		return p.word("null", nil)
	default:
		if c == '-' || isDigit(c) {
			return p.number()
		}
		return nil, p.unexpected("no JSON value")
	}
}

func (p *parser) deeper() error {
	p.at++
	if p.depth++; p.depth > maxMessageDepth {
		return fmt.Errorf("nested deeper than %d levels", maxMessageDepth)
	}
	return nil
}

func (p *parser) object() (any, error) {
	if err := p.deeper(); err != nil {
		return nil, err
	}
	object := map[string]any{}
	for first := true; ; first = false {
		c := p.next()
		if c == '}' && first {
			break
		}
		if c != '"' {
			return nil, p.unexpected("no key")
		}
		key, err := p.str()
		if err != nil {
			return nil, err
		}
		if p.next() != ':' {
			return nil, p.unexpected("no colon")
		}
		p.at++
		value, err := p.value()
		if err != nil {
			return nil, err
		}
		object[key] = value
		if c = p.next(); c == '}' {
			break
		} else if c != ',' {
			return nil, p.unexpected("no comma")
		}
		p.at++
	}
	p.at++
	p.depth--
	return object, nil
}

func (p *parser) array() (any, error) {
	if err := p.deeper(); err != nil {
		return nil, err
	}
	array := []any{}
	if p.next() != ']' {
		for {
			value, err := p.value()
			if err != nil {
				return nil, err
			}
			array = append(array, value)
			c := p.next()
			if c == ']' {
				break
			}
			if c != ',' {
				return nil, p.unexpected("no comma")
			}
			p.at++
		}
	}
	p.at++
	p.depth--
	return array, nil
}

func (p *parser) str() (string, error) {
	p.at++
	start := p.at
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == '"':
			p.at++
			return string(p.text[start : p.at-1]), nil
		case c == '\\':
			return p.escaped(start)
		case c < ' ':
			return "", p.unexpected("a control character in a string")
		}
		p.at++
	}
	return "", p.unexpected("a string without an end")
}

var escapes = map[byte]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

func (p *parser) escaped(start int) (string, error) {
	out := append([]byte(nil), p.text[start:p.at]...)
	for p.at < len(p.text) {
		c := p.text[p.at]
		p.at++
		switch {
		case c == '"':
			return string(out), nil
		case c < ' ':
			return "", p.unexpected("a control character in a string")
		case c != '\\':
			out = append(out, c)
			continue
		case p.at == len(p.text):
			return "", p.unexpected("a string without an end")
		}
		c = p.text[p.at]
		p.at++
		if c != 'u' {
			plain, known := escapes[c]
			if !known {
				return "", p.unexpected("an unknown escape")
			}
			out = append(out, plain)
			continue
		}
		unit, ok := p.hex4()
		if !ok {
			return "", p.unexpected("a bad \\u escape")
		}
		if utf16.IsSurrogate(unit) {
			if !bytes.HasPrefix(p.text[p.at:], []byte(`\u`)) {
				return "", p.unexpected("a lone surrogate")
			}
			p.at += 2
			low, ok := p.hex4()
			if unit = utf16.DecodeRune(unit, low); !ok || unit == utf8.RuneError {
				return "", p.unexpected("a lone surrogate")
			}
		}
		out = utf8.AppendRune(out, unit)
	}
	return "", p.unexpected("a string without an end")
}

func (p *parser) hex4() (rune, bool) {
	if p.at+4 > len(p.text) {
		return 0, false
	}
	value, err := strconv.ParseUint(string(p.text[p.at:p.at+4]), 16, 16)
	p.at += 4
	return rune(value), err == nil
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func (p *parser) digits() bool {
	start := p.at
	for p.at < len(p.text) && isDigit(p.text[p.at]) {
		p.at++
	}
	return p.at > start
}

func (p *parser) skip(set string) bool {
	if p.at < len(p.text) && strings.IndexByte(set, p.text[p.at]) >= 0 {
		p.at++
		return true
	}
	return false
}

func (p *parser) number() (any, error) {
	start := p.at
	p.skip("-")
	zero := p.at < len(p.text) && p.text[p.at] == '0'
	first := p.at
	if !p.digits() || (zero && p.at > first+1) {
		return nil, p.unexpected("no JSON number")
	}
	integer := true
	if p.skip(".") {
		integer = false
		if !p.digits() {
			return nil, p.unexpected("no JSON number")
		}
	}
	if p.skip("eE") {
		integer = false
		p.skip("+-")
		if !p.digits() {
			return nil, p.unexpected("no JSON number")
		}
	}
	text := string(p.text[start:p.at])
	if integer {
		if small, err := strconv.ParseInt(text, 10, 64); err == nil {
			return small, nil
		}
		large, _ := new(big.Int).SetString(text, 10)
		return large, nil
	}
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return nil, fmt.Errorf("number %.40s is out of range", text)
	}
	return value, nil
}

// encoder writes strict JSON; bytes are taken out as attachments.
type encoder struct {
	out    []byte
	root   string
	path   []step
	above  []identity // the containers around the value
	bytes  bool       // whether attachments can travel
	places []string
	blobs  [][]byte
}

// encoded is JSON text already.
type encoded string

type step struct {
	key   string
	index int // -1: a key
}

type identity struct {
	pointer uintptr
	length  int
}

func (e *encoder) pointer() string {
	var b strings.Builder
	b.WriteString(e.root)
	for _, s := range e.path {
		b.WriteByte('/')
		if s.index >= 0 {
			b.WriteString(strconv.Itoa(s.index))
		} else {
			b.WriteString(strings.ReplaceAll(strings.ReplaceAll(s.key, "~", "~0"), "/", "~1"))
		}
	}
	return b.String()
}

func (e *encoder) refuse(format string, args ...any) error {
	path := e.pointer()
	if len(path) > 200 {
		path = path[:120] + "..." + path[len(path)-60:]
	}
	message := strings.ToValidUTF8(path, "\ufffd") + ": " + fmt.Sprintf(format, args...)
	return &refused{"encode_error", "EncodeError", message}
}

func (e *encoder) value(value any) error {
	switch v := value.(type) {
	case nil:
		e.out = append(e.out, "null"...)
	case bool:
		e.out = strconv.AppendBool(e.out, v)
	case string:
		return e.text(v)
	case int64:
		e.out = strconv.AppendInt(e.out, v, 10)
	case int:
		e.out = strconv.AppendInt(e.out, int64(v), 10)
	case float64:
		return e.float(v, 64)
	case []byte:
		return e.attach(v)
	case encoded:
		e.out = append(e.out, v...)
	case []any:
		return e.list(reflect.ValueOf(v).Pointer(), len(v), func(i int) error { return e.value(v[i]) })
	case map[string]any:
		return e.stringMap(v)
	case *big.Int:
		if v == nil {
			e.out = append(e.out, "null"...)
		} else {
			e.out = v.Append(e.out, 10)
		}
	case big.Int:
		e.out = v.Append(e.out, 10)
	case json.Number:
		number, err := parse([]byte(v))
		switch number.(type) {
		case int64, *big.Int, float64:
			if err == nil {
				e.out = append(e.out, strings.TrimSpace(string(v))...)
				return nil
			}
		}
		return e.refuse("%q is not a JSON number", string(v))
	case *time.Time:
		if v != nil {
			return e.value(*v)
		}
		e.out = append(e.out, "null"...)
	case time.Time, time.Duration:
		return e.refuse("%T is not a JSON type; convert it, for example with Format or Seconds", v)
	case json.Marshaler:
		if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && r.IsNil() {
			e.out = append(e.out, "null"...)
			return nil
		}
		text, err := v.MarshalJSON()
		if err != nil {
			return e.refuse("%T: %v", v, err)
		}
		parsed, err := parse(text)
		if err != nil {
			return e.refuse("%T: its MarshalJSON is not strict JSON: %v", v, err)
		}
		return e.value(parsed)
	default:
		return e.reflected(reflect.ValueOf(value))
	}
	return nil
}

func (e *encoder) reflected(v reflect.Value) error {
	switch v.Kind() {
	case reflect.Bool:
		e.out = strconv.AppendBool(e.out, v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		e.out = strconv.AppendInt(e.out, v.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		e.out = strconv.AppendUint(e.out, v.Uint(), 10)
	case reflect.Float32:
		return e.float(v.Float(), 32)
	case reflect.Float64:
		return e.float(v.Float(), 64)
	case reflect.String:
		return e.text(v.String())
	case reflect.Pointer:
		if v.IsNil() {
			e.out = append(e.out, "null"...)
			return nil
		}
		return e.inside(identity{v.Pointer(), -1}, func() error {
			if !v.CanInterface() {
				return e.reflected(v.Elem())
			}
			return e.value(v.Elem().Interface())
		})
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return e.attach(v.Bytes())
		}
		return e.list(v.Pointer(), v.Len(), func(i int) error { return e.value(v.Index(i).Interface()) })
	case reflect.Array:
		return e.list(0, v.Len(), func(i int) error { return e.value(v.Index(i).Interface()) })
	case reflect.Map:
		if v.Type().Key().Kind() != reflect.String {
			return e.refuse("%s is not a JSON type; its keys are no strings", v.Type())
		}
		plain := make(map[string]any, v.Len())
		for each := v.MapRange(); each.Next(); {
			plain[each.Key().String()] = each.Value().Interface()
		}
		return e.members(identity{v.Pointer(), -2}, plain)
	case reflect.Struct:
		return e.structure(v)
	default:
		return e.refuse("%s is not a JSON type", v.Type())
	}
	return nil
}

func (e *encoder) float(value float64, bits int) error {
	switch {
	case math.IsNaN(value):
		return e.refuse("NaN is not JSON")
	case math.IsInf(value, 1):
		return e.refuse("Infinity is not JSON")
	case math.IsInf(value, -1):
		return e.refuse("-Infinity is not JSON")
	}
	format := byte('f')
	if size := math.Abs(value); size != 0 && (size < 1e-6 || size >= 1e21) {
		format = 'e'
	}
	start := len(e.out)
	e.out = strconv.AppendFloat(e.out, value, format, -1, bits)
	if bytes.IndexAny(e.out[start:], ".e") < 0 {
		e.out = append(e.out, ".0"...) // it stays a float in languages that know the difference
	}
	return nil
}

func (e *encoder) text(text string) error {
	if !utf8.ValidString(text) {
		for i := 0; i < len(text); {
			r, size := utf8.DecodeRuneInString(text[i:])
			if r == utf8.RuneError && size == 1 {
				if text[i] == 0xed && i+2 < len(text) && text[i+1] >= 0xa0 && text[i+2] >= 0x80 {
					return e.refuse("text with a lone surrogate at index %d is not UTF-8", i)
				}
				return e.refuse("text with the byte 0x%02x at index %d is not UTF-8; return []byte for bytes", text[i], i)
			}
			i += size
		}
	}
	e.out = appendText(e.out, text)
	return nil
}

const hexDigits = "0123456789abcdef"

func appendText(out []byte, text string) []byte {
	out = append(out, '"')
	start := 0
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		out = append(out, text[start:i]...)
		if c < ' ' {
			out = append(out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		} else {
			out = append(out, '\\', c)
		}
		start = i + 1
	}
	return append(append(out, text[start:]...), '"')
}

func (e *encoder) attach(data []byte) error {
	if !e.bytes {
		return e.refuse("[]byte cannot travel: the host takes no attachments")
	}
	e.places = append(e.places, "/"+e.pointer())
	e.blobs = append(e.blobs, data)
	e.out = append(e.out, "null"...)
	return nil
}

// inside encodes a container, which must not contain itself.
func (e *encoder) inside(who identity, encode func() error) error {
	if who.pointer != 0 {
		for _, other := range e.above {
			if other == who {
				return e.refuse("a cycle: the value contains itself")
			}
		}
	}
	if len(e.above) >= maxDepth {
		return e.refuse("nested deeper than %d levels", maxDepth)
	}
	e.above = append(e.above, who)
	if err := encode(); err != nil {
		return err
	}
	e.above = e.above[:len(e.above)-1]
	return nil
}

func (e *encoder) item(at step, encode func() error) error {
	e.path = append(e.path, at)
	if err := encode(); err != nil {
		return err
	}
	e.path = e.path[:len(e.path)-1]
	return nil
}

func (e *encoder) list(pointer uintptr, length int, encode func(i int) error) error {
	who := identity{pointer, length}
	if length == 0 {
		who.pointer = 0 // all empty slices may share one place
	}
	return e.inside(who, func() error {
		e.out = append(e.out, '[')
		e.path = append(e.path, step{})
		for i := 0; i < length; i++ {
			if i > 0 {
				e.out = append(e.out, ',')
			}
			e.path[len(e.path)-1].index = i
			if err := encode(i); err != nil {
				return err
			}
		}
		e.path = e.path[:len(e.path)-1]
		e.out = append(e.out, ']')
		return nil
	})
}

func (e *encoder) stringMap(object map[string]any) error {
	return e.members(identity{reflect.ValueOf(object).Pointer(), -2}, object)
}

func (e *encoder) members(who identity, object map[string]any) error {
	keys := make([]string, 0, len(object))
	for key := range object {
		keys = append(keys, key)
	}
	sort.Strings(keys) // the first mistake is always the same one
	return e.inside(who, func() error {
		e.out = append(e.out, '{')
		for i, key := range keys {
			if i > 0 {
				e.out = append(e.out, ',')
			}
			if err := e.text(key); err != nil {
				return err
			}
			e.out = append(e.out, ':')
			if err := e.item(step{key, -1}, func() error { return e.value(object[key]) }); err != nil {
				return err
			}
		}
		e.out = append(e.out, '}')
		return nil
	})
}

func (e *encoder) structure(v reflect.Value) error {
	fields := fieldsOf(v.Type())
	if len(fields) == 0 && v.NumField() > 0 {
		return e.refuse("%s is not a JSON type: it has no exported fields", v.Type())
	}
	return e.inside(identity{}, func() error {
		e.out = append(e.out, '{')
		empty := true
		for _, f := range fields {
			member, err := v.FieldByIndexErr(f.index)
			if err != nil || (f.omitEmpty && isEmpty(member)) {
				continue
			}
			if !empty {
				e.out = append(e.out, ',')
			}
			empty = false
			e.out = append(appendText(e.out, f.name), ':')
			err = e.item(step{f.name, -1}, func() error {
				if !member.CanInterface() { // an embedded struct of an unexported type
					return e.reflected(member)
				}
				return e.value(member.Interface())
			})
			if err != nil {
				return err
			}
		}
		e.out = append(e.out, '}')
		return nil
	})
}

func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Map, reflect.Slice, reflect.Array, reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}

// ------------------------------------------------------------------------------------------------ binding

type field struct {
	name      string
	index     []int
	omitEmpty bool
	tagged    bool // the name is from its tag
	clashes   bool // with another one of the same rank: both are hidden
}

func (f field) mayMiss(owner reflect.Type) bool {
	return f.omitEmpty || owner.FieldByIndex(f.index).Type.Kind() == reflect.Pointer
}

var knownFields sync.Map // reflect.Type -> []field

// fieldsOf returns a struct's fields by the rules of encoding/json, those of embedded structs among them.
func fieldsOf(t reflect.Type) []field {
	if known, ok := knownFields.Load(t); ok {
		return known.([]field)
	}
	type embedded struct {
		t     reflect.Type
		index []int
	}
	ranked := map[string]field{}
	seen := map[reflect.Type]bool{}
	times := map[reflect.Type]int{}
	for level := []embedded{{t, nil}}; len(level) > 0; {
		var deeper []embedded
		timesDeeper := map[reflect.Type]int{}
		for _, owner := range level {
			seen[owner.t] = true
			for i := 0; i < owner.t.NumField(); i++ {
				f := owner.t.Field(i)
				inner := indirect(f.Type)
				holder := f.Anonymous && inner.Kind() == reflect.Struct
				tag := f.Tag.Get("json")
				if tag == "-" || !f.IsExported() && !holder {
					continue
				}
				index := append(append([]int(nil), owner.index...), i)
				name, options, _ := strings.Cut(tag, ",")
				if !isName(name) {
					name = ""
				}
				if holder && name == "" {
					if timesDeeper[inner]++; timesDeeper[inner] == 1 {
						deeper = append(deeper, embedded{inner, index})
					}
					continue
				}
				omitEmpty := strings.Contains(","+options+",", ",omitempty,")
				found := field{name, index, omitEmpty, name != "", times[owner.t] > 1}
				if name == "" {
					found.name = f.Name
				}
				// The first level wins, and there a tag.
				other, taken := ranked[found.name]
				switch sameLevel := len(other.index) == len(index); {
				case !taken, sameLevel && found.tagged && !other.tagged:
					ranked[found.name] = found
				case sameLevel && found.tagged == other.tagged:
					other.clashes = true
					ranked[found.name] = other
				}
			}
		}
		level, times = nil, timesDeeper
		for _, next := range deeper {
			if !seen[next.t] {
				level = append(level, next)
			}
		}
	}
	var fields []field
	for _, f := range ranked {
		if !f.clashes {
			fields = append(fields, f)
		}
	}
	sort.Slice(fields, func(i, j int) bool { return before(fields[i].index, fields[j].index) })
	knownFields.Store(t, fields)
	return fields
}

func isName(text string) bool {
	return strings.IndexFunc(text, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("!#$%&()*+-./:;<=>?@[]^_{|}~ ", r)
	}) < 0
}

// before compares the places of two fields in the source.
func before(a, b []int) bool {
	for i := 0; i < min(len(a), len(b)); i++ {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return len(a) < len(b)
}

func indirect(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}

func paramsOf(t reflect.Type) []string {
	params := []string{}
	if t = indirect(t); t.Kind() == reflect.Struct {
		for _, f := range fieldsOf(t) {
			params = append(params, f.name)
		}
	}
	return params
}

// bindArgs sets target to args; an object fits a struct exactly, and null is an object without members there.
func bindArgs(command string, args any, target reflect.Value) error {
	if args == nil && target.Kind() == reflect.Struct {
		args = map[string]any{}
	}
	if problem := bind(args, target, ""); problem != "" {
		return badArgs(command + ": " + problem)
	}
	return nil
}

var (
	bigInt      = reflect.TypeOf(big.Int{})
	jsonNumber  = reflect.TypeOf(json.Number(""))
	timeType    = reflect.TypeOf(time.Time{})
	unmarshaler = reflect.TypeOf((*json.Unmarshaler)(nil)).Elem()
)

// bind sets target to a parsed value, or says what does not fit.
func bind(value any, target reflect.Value, path string) string {
	mismatch := func(due string) string {
		subject := "args"
		if path != "" {
			subject = "'" + path + "'"
		}
		return fmt.Sprintf("%s must be %s, got %s", subject, due, kindOf(value))
	}
	t := target.Type()
	kind := t.Kind()
	if kind == reflect.Pointer {
		if value == nil {
			target.Set(reflect.Zero(t))
			return ""
		}
		fresh := reflect.New(t.Elem())
		target.Set(fresh)
		return bind(value, fresh.Elem(), path)
	}
	if t == bigInt {
		switch v := value.(type) {
		case int64:
			target.Addr().Interface().(*big.Int).SetInt64(v)
		case *big.Int:
			target.Addr().Interface().(*big.Int).Set(v)
		default:
			return mismatch("an integer")
		}
		return ""
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		e := encoder{root: "args"}
		err := e.value(value)
		if err == nil {
			err = json.Unmarshal(e.out, target.Addr().Interface())
		}
		if err != nil {
			return fmt.Sprintf("%s: %v", mismatch(t.String()), err)
		}
		return ""
	}
	switch v := value.(type) {
	case nil:
		switch kind {
		case reflect.Interface, reflect.Map, reflect.Slice:
			target.Set(reflect.Zero(t))
			return ""
		}
	case bool:
		if kind == reflect.Bool {
			target.SetBool(v)
			return ""
		}
	case string:
		if kind == reflect.String && t != jsonNumber {
			target.SetString(v)
			return ""
		}
	case []byte:
		if kind == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
			target.SetBytes(v)
			return ""
		}
	case int64, *big.Int, float64:
		if problem, done := bindNumber(v, target, mismatch); done {
			return problem
		}
	case []any:
		isBytes := kind == reflect.Slice && t.Elem().Kind() == reflect.Uint8
		if (kind == reflect.Slice && !isBytes) || kind == reflect.Array {
			if kind == reflect.Slice {
				target.Set(reflect.MakeSlice(t, len(v), len(v)))
			} else if len(v) != t.Len() {
				return mismatch(fmt.Sprintf("an array of %d", t.Len())) + fmt.Sprintf(" of %d", len(v))
			}
			for i, item := range v {
				if problem := bind(item, target.Index(i), join(path, strconv.Itoa(i))); problem != "" {
					return problem
				}
			}
			return ""
		}
	case map[string]any:
		if kind == reflect.Struct {
			return bindStruct(v, target, path)
		}
		if kind == reflect.Map && t.Key().Kind() == reflect.String {
			if same, ok := value.(map[string]any); ok && t == reflect.TypeOf(same) {
				target.Set(reflect.ValueOf(same))
				return ""
			}
			target.Set(reflect.MakeMapWithSize(t, len(v)))
			for key, item := range v {
				fresh := reflect.New(t.Elem()).Elem()
				if problem := bind(item, fresh, join(path, key)); problem != "" {
					return problem
				}
				target.SetMapIndex(reflect.ValueOf(key).Convert(t.Key()), fresh)
			}
			return ""
		}
	}
	if kind == reflect.Interface && t.NumMethod() == 0 {
		target.Set(reflect.ValueOf(value))
		return ""
	}
	return mismatch(dueOf(t))
}

func bindNumber(value any, target reflect.Value, mismatch func(string) string) (problem string, done bool) {
	t := target.Type()
	small, isSmall := value.(int64)
	switch t.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if isSmall && !target.OverflowInt(small) {
			target.SetInt(small)
			return "", true
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		unsigned, fits := uint64(small), isSmall && small >= 0
		if large, ok := value.(*big.Int); ok {
			unsigned, fits = large.Uint64(), large.IsUint64()
		}
		if fits && !target.OverflowUint(unsigned) {
			target.SetUint(unsigned)
			return "", true
		}
	case reflect.Float32, reflect.Float64:
		number, exact := value.(float64)
		if !exact {
			var accuracy big.Accuracy
			number, accuracy = new(big.Float).SetInt(asBig(value)).Float64()
			isFloat32 := t.Kind() == reflect.Float32
			if accuracy != big.Exact || isFloat32 && float64(float32(number)) != number {
				return mismatch("a number that " + t.String() + " holds exactly"), true
			}
		}
		if !target.OverflowFloat(number) {
			target.SetFloat(number)
			return "", true
		}
	case reflect.String:
		if t == jsonNumber {
			e := encoder{}
			_ = e.value(value)
			target.SetString(string(e.out))
			return "", true
		}
		return "", false
	default:
		return "", false
	}
	if _, isFloat := value.(float64); isFloat {
		return mismatch(dueOf(t)), true
	}
	return mismatch(dueOf(t) + " in the range of " + t.String()), true
}

func bindStruct(object map[string]any, target reflect.Value, path string) string {
	fields := fieldsOf(target.Type())
	var missing, unexpected []string
	names := map[string]bool{}
	for _, f := range fields {
		names[f.name] = true
		if _, given := object[f.name]; !given && !f.mayMiss(target.Type()) {
			missing = append(missing, "'"+join(path, f.name)+"'")
		}
	}
	for key := range object {
		if !names[key] {
			unexpected = append(unexpected, "'"+join(path, key)+"'")
		}
	}
	sort.Strings(unexpected)
	var parts []string
	if len(missing) > 0 {
		parts = append(parts, "missing "+strings.Join(missing, ", "))
	}
	if len(unexpected) > 0 {
		parts = append(parts, "unexpected "+strings.Join(unexpected, ", "))
	}
	if len(parts) > 0 {
		return strings.Join(parts, "; ") + "; parameters: " + strings.Join(paramsOf(target.Type()), ", ")
	}
	for _, f := range fields {
		value, given := object[f.name]
		if !given {
			continue
		}
		if problem := bind(value, reach(target, f.index), join(path, f.name)); problem != "" {
			return problem
		}
	}
	return ""
}

// reach returns a field of an embedded struct, which it makes where a pointer to it is nil.
func reach(v reflect.Value, index []int) reflect.Value {
	for _, i := range index {
		if v.Kind() == reflect.Pointer {
			if v.IsNil() {
				v.Set(reflect.New(v.Type().Elem()))
			}
			v = v.Elem()
		}
		v = v.Field(i)
	}
	return v
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}

func asBig(value any) *big.Int {
	if small, ok := value.(int64); ok {
		return big.NewInt(small)
	}
	return value.(*big.Int)
}

func kindOf(value any) string {
	switch v := value.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case string:
		return "a string"
	case int64, *big.Int:
		text := fmt.Sprint(v)
		return "the integer " + text[:min(len(text), 40)]
	case float64:
		return "a number with a fraction or an exponent"
	case []byte:
		return "bytes"
	case []any:
		return "an array"
	}
	return "an object"
}

func dueOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "a boolean"
	case reflect.String:
		return "a string"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "an integer"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return "an integer"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		return "an array"
	case reflect.Map, reflect.Struct:
		return "an object"
	}
	return t.String()
}

// ------------------------------------------------------------------------------------------------ schemas

const (
	anyValue      = `{}`
	bytesValue    = `{"description":"bytes"}` // JSON Schema has no word for them
	nullValue     = `{"type":"null"}`
	noValue       = `{"not":{}}`
	maxDescribed  = 1000 // arbitrary: types within types of one command; what is beyond it may be any value
	closedObject  = `{"type":"object","properties":{%s},"required":[%s],"additionalProperties":false}`
	openObject    = `{"type":"object","properties":{},"required":[],"additionalProperties":%s}`
	floatRange    = `{"type":"number","minimum":-%[1]v,"maximum":%[1]v}`
	integerRange  = `{"type":"integer","minimum":%d,"maximum":%d}`
	arrayOfLength = `{"type":"array","items":%s,"minItems":%[2]d,"maxItems":%[2]d}`
)

// describer tells in JSON Schema what bind accepts.
type describer struct {
	above []reflect.Type // the types around this one: a recursive type is not followed
	count int
}

// schemaOf returns the schema of a command's args; empty where they need not be an object.
func schemaOf(t reflect.Type) encoded {
	if t == nil {
		return ""
	}
	d := describer{}
	t = indirect(t)
	switch {
	case t == bigInt, reflect.PointerTo(t).Implements(unmarshaler):
		return ""
	case t.Kind() == reflect.Struct:
		return encoded(d.value(t))
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String:
		return encoded(fmt.Sprintf(openObject, d.value(t.Elem())))
	}
	return ""
}

func (d *describer) value(t reflect.Type) string {
	if d.count++; d.count > maxDescribed {
		return anyValue
	}
	for _, other := range d.above {
		if other == t {
			return anyValue
		}
	}
	d.above = append(d.above, t)
	defer func() { d.above = d.above[:len(d.above)-1] }()
	switch {
	case t.Kind() == reflect.Pointer:
		return orNull(d.value(t.Elem()))
	case t == bigInt:
		return `{"type":"integer"}`
	case t == jsonNumber:
		return `{"type":"number"}`
	case t == timeType:
		return orNull(`{"type":"string","format":"date-time"}`)
	case reflect.PointerTo(t).Implements(unmarshaler):
		return anyValue
	}
	switch t.Kind() {
	case reflect.Bool:
		return `{"type":"boolean"}`
	case reflect.String:
		return `{"type":"string"}`
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		spare := 64 - t.Bits()
		return fmt.Sprintf(integerRange, int64(math.MinInt64)>>spare, int64(math.MaxInt64)>>spare)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return fmt.Sprintf(integerRange, 0, uint64(math.MaxUint64)>>(64-t.Bits()))
	case reflect.Float32:
		return fmt.Sprintf(floatRange, math.MaxFloat32)
	case reflect.Float64:
		return `{"type":"number"}`
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return bytesValue
		}
		return orNull(fmt.Sprintf(`{"type":"array","items":%s}`, d.value(t.Elem())))
	case reflect.Array:
		return fmt.Sprintf(arrayOfLength, d.value(t.Elem()), t.Len())
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			return nullValue
		}
		return orNull(fmt.Sprintf(`{"type":"object","additionalProperties":%s}`, d.value(t.Elem())))
	case reflect.Struct:
		return d.structure(t)
	case reflect.Interface:
		if t.NumMethod() > 0 {
			return nullValue
		}
		return anyValue
	}
	return noValue
}

func (d *describer) structure(t reflect.Type) string {
	var properties, required []string
	for _, f := range fieldsOf(t) {
		name := string(appendText(nil, f.name))
		properties = append(properties, name+":"+d.value(t.FieldByIndex(f.index).Type))
		if !f.mayMiss(t) {
			required = append(required, name)
		}
	}
	return fmt.Sprintf(closedObject, strings.Join(properties, ","), strings.Join(required, ","))
}

func orNull(schema string) string {
	if schema == anyValue || schema == bytesValue || strings.HasPrefix(schema, `{"anyOf":`) {
		return schema // null is among these
	}
	return `{"anyOf":[` + schema + "," + nullValue + "]}"
}

// ------------------------------------------------------------------------------------------------ errors

// refused is answered with its code and without a traceback: the message says it all.
type refused struct{ code, kind, message string }

func (r *refused) Error() string { return r.message }

func badArgs(message string) error {
	return &refused{"bad_args", "InvalidArguments", capped(message)}
}

// panicked is what a handler's panic becomes.
type panicked struct {
	value any
	stack string
}

func (p *panicked) Error() string {
	if p.value == nil {
		return "panic called with nil argument"
	}
	return fmt.Sprint(p.value)
}

type goexit struct{}

func (goexit) Error() string { return "runtime.Goexit was called in place of a return" }

type report struct {
	Code      string  `json:"code"`
	Type      string  `json:"type"`
	Message   string  `json:"message"`
	Traceback *string `json:"traceback"`
	Data      any     `json:"data,omitempty"`
	Cause     *cause  `json:"cause,omitempty"`
	Language  string  `json:"language"`
}

type cause struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

func capped(text string) string {
	text = strings.ToValidUTF8(text, "\ufffd")
	if len(text) <= maxTextBytes {
		return text
	}
	end := maxTextBytes - 5
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "[...]"
}

func typeName(value any) string {
	name := strings.TrimLeft(fmt.Sprintf("%T", value), "*")
	return name[strings.LastIndexByte(name, '.')+1:]
}

// messageOf returns the text of an error whose method may panic itself.
func messageOf(err error) (text string) {
	text = typeName(err)
	defer func() {
		if second := recover(); second != nil {
			text = fmt.Sprintf("<Error() of %T panicked: %v>", err, second)
		}
	}()
	if message := capped(err.Error()); message != "" {
		return message
	}
	return text
}

func describe(err error, c *command) report {
	r := report{Message: messageOf(err), Language: "go"}
	if refusal, ok := err.(*refused); ok {
		r.Code, r.Type = refusal.code, refusal.kind
		return r
	}
	r.Code, r.Type = "handler_error", typeName(err)
	trace := fmt.Sprintf("%T: %s\n", err, r.Message)
	p, isPanic := err.(*panicked)
	if isPanic {
		r.Type = "panic"
		trace = fmt.Sprintf("panic: %s\n\n%s", r.Message, p.stack)
		if inner, ok := p.value.(error); ok {
			r.Type, err = typeName(inner), inner
		}
	}
	describeMore(err, &r, &trace)
	if !isPanic && c != nil {
		trace += "returned by " + c.origin + "\n"
	}
	trace = capped(trace)
	r.Traceback = &trace
	return r
}

// describeMore adds what the error's own methods tell: its causes, and its data.
func describeMore(err error, r *report, trace *string) {
	defer func() { _ = recover() }()
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		message := messageOf(inner)
		if r.Cause == nil {
			r.Cause = &cause{typeName(inner), message}
		}
		*trace += fmt.Sprintf("caused by %T: %s\n", inner, message)
		if len(*trace) > maxTextBytes {
			break
		}
	}
	if carrier, ok := err.(interface{ Data() any }); ok {
		e := encoder{root: "data", above: make([]identity, 1)} // the report is a level itself
		if data := carrier.Data(); data != nil && e.value(data) == nil {
			r.Data = encoded(e.out)
		}
	}
}

// ------------------------------------------------------------------------------------------------ the worker

// framing is an error after which the requests cannot be followed any further.
type framing struct{ reason string }

func (f *framing) Error() string { return f.reason }

// worker runs requests in order on one goroutine; only its log is called from others.
type worker struct {
	requests *pump
	in       *bufio.Reader
	out      *output
	began    time.Time
	id       string
	state    map[string]any
	sessions map[string]map[string]any
	commands map[string]*command
	agreed   []string
	level    int
	started  bool
	count    int
	scratch  []byte // of the last reply

	canLog    atomic.Bool // the first reply has left
	busy      atomic.Bool // a handler runs or its reply is being written
	graceOver atomic.Bool // the requests have ended a while ago
}

func (w *worker) run() int {
	for {
		payload, err := w.readFrame()
		if err == io.EOF {
			return 0
		}
		if err != nil {
			return w.lost(err)
		}
		parsed, err := parse(payload)
		message, isObject := parsed.(map[string]any)
		if err == nil && !isObject {
			err = errors.New("not an object")
		}
		if err != nil {
			w.badFrame(payload, err.Error())
			continue
		}
		if _, isRequest := message["command"]; !isRequest && message["type"] != nil {
			if session, ok := message["session"].(string); ok && message["type"] == "session_end" {
				delete(w.sessions, session)
			}
			continue
		}
		id, ok := message["id"].(int64)
		if !ok {
			w.badFrame(payload, "no integer id")
			continue
		}
		payload = nil
		if !w.started {
			answered, err := w.start(id, message)
			if err != nil {
				w.replyError(id, -1, err, nil)
				return 1
			}
			if answered {
				continue
			}
		}
		if err := w.serve(id, message); err != nil {
			return w.lost(err)
		}
	}
}

func (w *worker) lost(err error) int {
	var frame *framing
	if errors.As(err, &frame) {
		w.badFrame(nil, frame.reason)
	} else {
		complain("cannot read requests: " + err.Error())
	}
	return 2
}

// readFull fills data with requests; before it waits for them nothing is held.
func (w *worker) readFull(data []byte) (int, error) {
	if w.in.Buffered() < len(data) {
		w.out.flush()
	}
	return io.ReadFull(w.in, data)
}

func (w *worker) readLength() (int, error) {
	var head [4]byte
	if _, err := w.readFull(head[:]); err == io.ErrUnexpectedEOF {
		return 0, &framing{"the request stream ended inside a length"}
	} else if err != nil {
		return 0, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size == 0 || size > uint32(w.out.maxFrame) {
		seen, _ := w.in.Peek(min(w.in.Buffered(), 76))
		return 0, &framing{fmt.Sprintf("length %d is not in 1..%d; bytes seen: %q", size, w.out.maxFrame, append(head[:], seen...))}
	}
	return int(size), nil
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

func (w *worker) readFrame() ([]byte, error) {
	size, err := w.readLength()
	if err != nil {
		return nil, err
	}
	payload := make([]byte, size)
	return payload, w.readPayload(payload)
}

func (w *worker) readPayload(payload []byte) error {
	done, err := w.readFull(payload)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return &framing{fmt.Sprintf("the request stream ended after %d of a frame's %d bytes", done, len(payload))}
	}
	return err
}

// serve answers one request; an error means that the stream is lost.
func (w *worker) serve(id int64, message map[string]any) error {
	var problem error
	if w.level == 0 {
		plain := map[string]any{}
		for _, key := range []string{"command", "args"} {
			if value, ok := message[key]; ok {
				plain[key] = value
			}
		}
		message = plain
	} else {
		var err error
		if problem, err = w.takeAttachments(message); err != nil {
			return err
		}
	}
	complaint := func(what string) {
		if problem == nil {
			problem = badArgs(fmt.Sprintf("request %d: %s", id, what))
		}
	}
	job := &job{id: id, index: -1}
	switch ms := message["deadline_ms"].(type) {
	case nil:
	case int64:
		job.deadline = after(float64(ms))
	case float64:
		job.deadline = after(ms)
	default:
		complaint("'deadline_ms' must be a number")
	}
	switch session := message["session"].(type) {
	case nil:
	case string:
		job.session = &session
	default:
		complaint("'session' must be a string")
	}
	given, isBatch := message["batch"]
	batch, isArray := given.([]any)
	if isBatch && !isArray {
		complaint("'batch' must be an array")
	} else if isBatch && len(batch) == 0 {
		complaint("'batch' must not be empty")
	}
	if name, ok := message["command"].(string); !ok {
		complaint("'command' must be a string")
	} else if job.command = w.commands[name]; job.command == nil && problem == nil {
		problem = w.unknown(name)
	}
	job.problem = problem
	job.claim = message["claim"] == true
	if len(batch) > 0 {
		w.serveBatch(job, batch, 0)
		return nil
	}
	args, given2 := message["args"]
	if !given2 {
		args = map[string]any{}
	}
	w.serveItem(job, args)
	return nil
}

func after(ms float64) *time.Time {
	// Beyond this a Duration would overflow; a thousand years are no limit.
	at := time.Now().Add(time.Duration(math.Min(math.Max(ms, 0), 1e12) * float64(time.Millisecond)))
	return &at
}

func (w *worker) unknown(name string) error {
	message := fmt.Sprintf("Unknown command: '%s'. Available: %s", name, strings.Join(w.names(), ", "))
	return &refused{"unknown_command", "UnknownCommand", message}
}

func (w *worker) names() []string {
	names := make([]string, 0, len(w.commands))
	for name := range w.commands {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// job is a request, or one item of a batch.
type job struct {
	id       int64
	index    int // -1: not in a batch
	command  *command
	session  *string
	deadline *time.Time
	claim    bool
	problem  error
}

func (w *worker) serveBatch(job *job, batch []any, index int) {
	defer func() {
		if index < len(batch) { // runtime.Goexit, as in live
			w.serveBatch(job, batch, index)
		}
	}()
	since := time.Now()
	w.out.timer.Reset(batchWait)
	for index < len(batch) {
		if now := time.Now(); now.Sub(since) > batchWait {
			w.out.flush()
			since = now
			// An item may wait for something that the bridge cannot see: the timer writes what it left.
			w.out.timer.Reset(batchWait)
		}
		job.index = index
		index++
		w.serveItem(job, batch[job.index])
	}
	w.out.timer.Stop()
	w.out.flush()
}

func (w *worker) serveItem(job *job, args any) {
	if job.claim {
		switch kept, err := claim(); {
		case err != nil:
			if job.problem != nil {
				err = job.problem
			}
			w.replyError(job.id, job.index, err, nil)
			return
		case !kept:
			recalled := append(w.head(job.id, job.index), `,"type":"recalled"}`...)
			w.out.send(recalled, true)
			w.scratch = recalled
			return
		}
	}
	if job.index < 0 {
		w.out.flush()
	}
	if job.problem != nil {
		w.replyError(job.id, job.index, job.problem, nil)
		return
	}
	w.busy.Store(true)
	if w.graceOver.Load() {
		os.Exit(0)
	}
	w.perform(job, args)
}

// claim takes the byte that stands for one request sent ahead; false: the host has taken it back.
func claim() (bool, error) {
	if claimFD < 0 {
		return false, &refused{"internal", "ProtocolError", "claim: this worker has no SNAKEPIT_CLAIM_FD"}
	}
	var token [1]byte
	for {
		count, err := syscall.Read(claimFD, token[:])
		switch err {
		case nil:
			return count == 1, nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false, nil
		default:
			return false, &refused{"internal", "ProtocolError", "claim: " + err.Error()}
		}
	}
}

func (w *worker) context(job *job) *Context {
	ctx := &Context{WorkerID: w.id, WorkerState: w.state, id: job.id, session: job.session, worker: w}
	if job.deadline != nil {
		ctx.Context, ctx.cancel = context.WithDeadline(context.Background(), *job.deadline)
	} else {
		ctx.Context, ctx.cancel = context.WithCancel(context.Background())
	}
	if job.session == nil {
		ctx.State = map[string]any{}
	} else if ctx.State = w.sessions[*job.session]; ctx.State == nil {
		ctx.State = map[string]any{}
		w.sessions[*job.session] = ctx.State
	}
	return ctx
}

func (w *worker) perform(job *job, args any) {
	w.count++
	ctx := w.context(job)
	answered := false
	defer func() {
		if !answered {
			ctx.end()
			w.replyError(job.id, job.index, &panicked{goexit{}, userStack()}, job.command)
		}
		w.busy.Store(false)
	}()
	result, err := call(job.command, args, ctx)
	ctx.end()
	if err == nil {
		err = w.reply(job.id, job.index, result)
	}
	if err != nil {
		w.replyError(job.id, job.index, err, job.command)
	}
	answered = true
}

// call runs a handler; a panic is its error.
func call(c *command, args any, ctx *Context) (result any, err error) {
	returned := false
	defer func() {
		if !returned { // before Go 1.21 the value of panic(nil) is nil
			result, err = nil, &panicked{recover(), userStack()}
		}
	}()
	result, err = c.call(args, ctx)
	returned = true
	return result, err
}

// userStack returns the stack without the deferred function that asks for it, and the runtime's part below that.
func userStack() string {
	stack := string(debug.Stack())
	for _, call := range []string{"\npanic(", "\nruntime.Goexit("} {
		if _, rest, found := strings.Cut(stack, call); found {
			if _, below, found := strings.Cut(rest, "\n\t"); found {
				if _, user, found := strings.Cut(below, "\n"); found {
					return user
				}
			}
		}
	}
	return stack
}

// takeAttachments reads the raw frames that follow a message and puts them in place.
func (w *worker) takeAttachments(message map[string]any) (problem error, lost error) {
	given, ok := message["attachments"]
	if !ok || given == nil {
		return nil, nil
	}
	uncountable := &framing{"attachments without a usable 'len': the frames that follow cannot be counted"}
	entries, ok := given.([]any)
	if !ok {
		return nil, uncountable
	}
	for _, each := range entries {
		entry, _ := each.(map[string]any)
		if size, ok := entry["len"].(int64); !ok || size < 0 || size > 1<<40 {
			return nil, uncountable
		}
	}
	for _, each := range entries {
		entry := each.(map[string]any)
		data := make([]byte, entry["len"].(int64))
		for rest := data; len(rest) > 0; {
			due := min(w.out.maxFrame, len(rest))
			size, err := w.readLength()
			if err == io.EOF {
				return nil, &framing{"attachment: the request stream ended where a frame was due"}
			}
			if err != nil {
				return nil, err
			}
			if size != due {
				return nil, &framing{fmt.Sprintf("attachment: a frame of %d bytes was due, got one of %d", due, size)}
			}
			if err := w.readPayload(rest[:due]); err != nil {
				return nil, err
			}
			rest = rest[due:]
		}
		path, _ := entry["path"].(string)
		reason := "its kind is not 'bytes'"
		if entry["kind"] == "bytes" {
			reason = insert(message, path, data)
		}
		if reason != "" && problem == nil {
			problem = badArgs(fmt.Sprintf("attachment '%.200s': %s", path, reason))
		}
	}
	return problem, nil
}

// insert sets the null value at an RFC 6901 pointer, or says why it cannot.
func insert(message any, path string, data []byte) string {
	if !strings.HasPrefix(path, "/") {
		return "its path is no JSON pointer"
	}
	place, set := message, func(any) {}
	for _, token := range strings.Split(path[1:], "/") {
		token = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
		switch container := place.(type) {
		case map[string]any:
			inner, found := container[token]
			if !found {
				return "its path leads nowhere"
			}
			place, set = inner, func(v any) { container[token] = v }
		case []any:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(container) {
				return "its path leads nowhere"
			}
			place, set = container[i], func(v any) { container[i] = v }
		default:
			return "its path leads nowhere"
		}
	}
	if place != nil {
		return "the place does not hold null"
	}
	set(data)
	return ""
}

// Start

// start agrees on a protocol and runs the start functions; it answers a ping that offers one.
func (w *worker) start(id int64, message map[string]any) (answered bool, err error) {
	w.started = true
	args, isPing := message["args"].(map[string]any)
	isPing = isPing && message["command"] == "ping"
	var startArgs any
	var protocol map[string]any
	if isPing {
		if name, ok := args["worker_id"].(string); ok {
			w.id = name
		}
		startArgs = args["start_args"]
		if protocol, err = w.negotiate(args["protocol"]); err != nil {
			return false, err
		}
	}
	w.busy.Store(true)
	defer w.busy.Store(false)
	loaded := false
	defer func() {
		if !loaded {
			w.replyError(id, -1, &panicked{goexit{}, userStack()}, nil)
			os.Exit(1)
		}
	}()
	err = w.load(startArgs)
	loaded = true
	if err != nil {
		return false, err
	}
	if protocol == nil {
		return false, nil
	}
	w.count++
	result := w.ping(args)
	result["protocol"] = protocol
	protocol["commands"] = w.described(true)
	err = w.reply(id, -1, result)
	var problem *refused
	if errors.As(err, &problem) && problem.code == "too_large" { // better a start without descriptions than none
		protocol["commands"] = w.described(false)
		err = w.reply(id, -1, result)
	}
	if err != nil {
		return false, err
	}
	w.canLog.Store(w.agrees("log"))
	return true, nil
}

func (w *worker) described(fully bool) map[string]any {
	commands := map[string]any{}
	for name, c := range w.commands {
		told := map[string]any{"params": c.params, "doc": ""}
		if fully {
			told["doc"] = capped(docs[name])
			if schema := schemaOf(c.args); schema != "" {
				told["schema"] = schema
			}
		}
		commands[name] = told
	}
	return commands
}

func (w *worker) negotiate(offer any) (map[string]any, error) {
	terms, _ := offer.(map[string]any)
	versions, _ := terms["versions"].([]any)
	if !contains(versions, int64(1)) {
		return nil, nil
	}
	w.level = 1
	limit := int64(defaultMaxFrame)
	if given, ok := terms["max_frame"]; ok {
		if limit, ok = given.(int64); !ok || limit < 1 {
			return nil, badArgs("ping: protocol.max_frame must be an integer >= 1")
		}
	}
	if limit > largestMaxFrame {
		limit = largestMaxFrame
	}
	w.out.maxFrame = int(limit)
	offered, _ := terms["capabilities"].([]any)
	for _, name := range capabilities {
		if contains(offered, name) && (name != "claim" || claimFD >= 0) {
			w.agreed = append(w.agreed, name)
		}
	}
	return map[string]any{
		"version":      1,
		"max_frame":    w.out.maxFrame,
		"capabilities": w.agreed,
		"language":     "go",
		"runtime":      strings.TrimPrefix(runtime.Version(), "go"),
		"bridge":       bridgeVersion,
		"pid":          os.Getpid(),
	}, nil
}

func contains(list []any, wanted any) bool {
	for _, item := range list {
		if item == wanted {
			return true
		}
	}
	return false
}

func (w *worker) agrees(capability string) bool {
	for _, name := range w.agreed {
		if name == capability {
			return true
		}
	}
	return false
}

func (w *worker) load(startArgs any) error {
	w.builtIns()
	for name, c := range registered {
		w.commands[name] = c
	}
	if badRegistered != nil {
		return badRegistered
	}
	for name := range docs {
		if w.commands[name] == nil {
			return fmt.Errorf("snakepit.Doc names an unknown command: '%s'", name)
		}
	}
	if startArgs != nil && len(starters) == 0 {
		return badArgs("start_args were given, but the program calls no snakepit.OnStart")
	}
	for _, starter := range starters {
		ctx := w.context(&job{id: -1, index: -1})
		_, err := call(starter, startArgs, ctx)
		ctx.end()
		if err != nil {
			return err
		}
	}
	return nil
}

// Built-in commands

func (w *worker) builtIns() {
	add := func(name, doc string, params []string, run func(args any) (any, error)) {
		call := func(args any, _ *Context) (any, error) { return run(args) }
		w.commands[name] = &command{name: name, params: params, call: call, origin: "the bridge"}
		if registered[name] == nil && docs[name] == "" {
			docs[name] = doc
		}
	}
	none := []string{}
	add("ping", "Tell that the worker is well.", none, func(args any) (any, error) { return w.ping(args), nil })
	add("echo", "Return the args as they came.", none, func(args any) (any, error) {
		return map[string]any{"status": "ok", "echoed": args, "timestamp": now()}, nil
	})
	params := []string{"operation", "a", "b"}
	add("compute", "Add, subtract, multiply or divide two numbers.", params, compute)
	add("info", "Describe the bridge and its system.", none, func(any) (any, error) { return w.info(), nil })
}

func now() float64 { return float64(time.Now().UnixNano()) / 1e9 }

func (w *worker) ping(args any) map[string]any {
	echo, id := args, any(w.id)
	if known, ok := args.(map[string]any); ok {
		shown := map[string]any{}
		for key, value := range known {
			if key != "protocol" && key != "start_args" && key != "prepare" {
				shown[key] = value
			}
		}
		if given, ok := known["worker_id"]; ok {
			id = given
		}
		echo = shown
	}
	return map[string]any{
		"status": "ok", "bridge_type": "go", "uptime": time.Since(w.began).Seconds(), "requests_handled": w.count,
		"timestamp": now(), "go_version": runtime.Version(), "worker_id": id, "echo": echo,
	}
}

func (w *worker) info() map[string]any {
	return map[string]any{
		"status": "ok",
		"bridge_info": map[string]any{
			"name": "Snakepit Go Bridge", "version": bridgeVersion, "supported_commands": w.names(),
			"uptime": time.Since(w.began).Seconds(), "total_requests": w.count,
		},
		"system_info": map[string]any{"go_version": runtime.Version(), "platform": runtime.GOOS},
		"timestamp":   now(),
	}
}

func compute(args any) (any, error) {
	given, ok := args.(map[string]any)
	if !ok {
		return nil, badArgs("compute: args must be an object")
	}
	for _, name := range []string{"operation", "a", "b"} {
		if _, ok := given[name]; !ok {
			return nil, badArgs(fmt.Sprintf("compute: missing field '%s'", name))
		}
	}
	operation, ok := given["operation"].(string)
	if !ok {
		e := encoder{bytes: true}
		_ = e.value(given["operation"])
		operation = string(e.out)
	}
	switch operation {
	case "add", "divide", "multiply", "subtract":
	default:
		ok = false
	}
	if !ok {
		const known = "compute: unknown operation '%.200s'; one of add, divide, multiply, subtract"
		return nil, badArgs(fmt.Sprintf(known, operation))
	}
	whole := true
	for _, name := range []string{"a", "b"} {
		switch given[name].(type) {
		case int64, *big.Int:
		case float64:
			whole = false
		default:
			return nil, badArgs(fmt.Sprintf("compute: field '%s' must be a number", name))
		}
	}
	a, b := given["a"], given["b"]
	if operation == "divide" && asFloat(b) == 0 {
		return nil, badArgs("compute: division by zero")
	}
	var result any
	if whole {
		result = computeWhole(operation, asBig(a), asBig(b))
	} else {
		result = computeFloat(operation, asFloat(a), asFloat(b))
	}
	if f := asFloat(result); math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, badArgs("compute: result is not a finite number")
	}
	inputs := map[string]any{"a": a, "b": b}
	return map[string]any{
		"status": "ok", "operation": operation, "inputs": inputs, "result": result, "timestamp": now(),
	}, nil
}

func asFloat(value any) float64 {
	if f, ok := value.(float64); ok {
		return f
	}
	f, _ := new(big.Float).SetInt(asBig(value)).Float64()
	return f
}

func computeFloat(operation string, a, b float64) float64 {
	switch operation {
	case "add":
		return a + b
	case "subtract":
		return a - b
	case "multiply":
		return a * b
	}
	return a / b
}

func computeWhole(operation string, a, b *big.Int) any {
	result := new(big.Int)
	switch operation {
	case "add":
		result.Add(a, b)
	case "subtract":
		result.Sub(a, b)
	case "multiply":
		result.Mul(a, b)
	default:
		quotient, _ := new(big.Rat).SetFrac(a, b).Float64()
		return quotient
	}
	return result
}

// Replies

// head begins a message: room for its length, then its id and index.
func (w *worker) head(id any, index int) []byte {
	e := encoder{out: append(w.scratch[:0], 0, 0, 0, 0)}
	w.scratch = nil
	e.out = append(e.out, `{"id":`...)
	_ = e.value(id)
	if index >= 0 {
		e.out = strconv.AppendInt(append(e.out, `,"index":`...), int64(index), 10)
	}
	return e.out
}

func (w *worker) reply(id int64, index int, result any) (err error) {
	encoding := true
	defer func() {
		if encoding { // a MarshalJSON of the program
			err = &panicked{recover(), userStack()}
		}
	}()
	e := encoder{out: w.head(id, index), root: "result", bytes: w.agrees("attachments")}
	e.out = append(e.out, `,"success":true,"result":`...)
	err = e.value(result)
	encoding = false
	if err != nil {
		return err
	}
	if len(e.blobs) > 0 {
		e.out = append(e.out, `,"attachments":[`...)
		for i, place := range e.places {
			if i > 0 {
				e.out = append(e.out, ',')
			}
			e.out = appendText(append(e.out, `{"path":`...), place)
			e.out = strconv.AppendInt(append(e.out, `,"kind":"bytes","len":`...), int64(len(e.blobs[i])), 10)
			e.out = append(e.out, '}')
		}
		e.out = append(e.out, ']')
	}
	e.out = w.tail(e.out)
	if size := len(e.out) - 4; size > w.out.maxFrame {
		const words = "the encoded reply has %d bytes; the limit is %d (max_frame)"
		return &refused{"too_large", "ResultTooLarge", fmt.Sprintf(words, size, w.out.maxFrame)}
	}
	w.out.send(e.out, index >= 0, e.blobs...)
	if cap(e.out) <= chunkBytes {
		w.scratch = e.out
	}
	return nil
}

func (w *worker) tail(out []byte) []byte {
	if w.level == 0 {
		out = append(out, `,"timestamp":"`...)
		out = time.Now().UTC().AppendFormat(out, "2006-01-02T15:04:05.000Z")
		out = append(out, '"')
	}
	return append(out, '}')
}

// replyError answers with an error; an id that is nil is null.
func (w *worker) replyError(id any, index int, err error, c *command) {
	w.out.flush()
	r := describe(err, c)
	message := w.errorMessage(id, index, r)
	if len(message)-4 > w.out.maxFrame {
		r.Data, r.Cause, r.Traceback = nil, nil, nil
		room := w.out.maxFrame / 8
		if room < 16 {
			room = 16
		}
		if len(r.Message) > room {
			r.Message = strings.ToValidUTF8(r.Message[:room], "")
		}
		message = w.errorMessage(id, index, r)
	}
	if len(message)-4 <= w.out.maxFrame {
		w.out.send(message, false)
	}
}

func (w *worker) errorMessage(id any, index int, r report) []byte {
	e := encoder{out: append(w.head(id, index), `,"success":false,"error":`...)}
	if w.agrees("errors") {
		_ = e.value(r)
	} else {
		_ = e.value(r.Message)
	}
	return w.tail(e.out)
}

const idSeen = `[{,]\s*"id"\s*:\s*(\d{1,16})\s*[,}]` // compiled when needed: a start has no use for it

// badFrame answers what is no request, with its id if one can be seen, and says so on stderr.
func (w *worker) badFrame(payload []byte, reason string) {
	var id any
	message := "bad frame: " + reason
	if payload != nil {
		if found := regexp.MustCompile(idSeen).FindSubmatch(payload[:min(len(payload), 4096)]); found != nil {
			id, _ = strconv.ParseInt(string(found[1]), 10, 64)
		}
		message += fmt.Sprintf("; bytes seen: %q", payload[:min(len(payload), 80)])
	}
	complain(message)
	w.replyError(id, -1, &refused{"internal", "BadFrame", message}, nil)
}

func (w *worker) log(c *Context, message, level string, fields map[string]any) {
	if w.canLog.Load() {
		e := encoder{out: []byte{0, 0, 0, 0}, root: "fields"}
		e.out = strconv.AppendInt(append(e.out, `{"type":"log","id":`...), c.id, 10)
		e.out = appendText(append(e.out, `,"level":`...), level)
		e.out = appendText(append(e.out, `,"message":`...), message)
		e.out = append(e.out, `,"fields":`...)
		start := len(e.out)
		if e.stringMap(fields) != nil {
			shown := map[string]any{}
			for key, value := range fields {
				shown[capped(key)] = capped(fmt.Sprintf("%+v", value))
			}
			e = encoder{out: e.out[:start], root: "fields"}
			_ = e.stringMap(shown)
		}
		e.out = append(e.out, '}')
		if len(e.out)-4 <= w.out.maxFrame {
			binary.BigEndian.PutUint32(e.out, uint32(len(e.out)-4))
			w.out.mutex.Lock()
			defer w.out.mutex.Unlock()
			if !c.over {
				w.out.write(e.out)
				return
			}
		}
	}
	line := fmt.Sprintf("[%s] %s", level, message)
	for key, value := range fields {
		line += fmt.Sprintf(" %s=%+v", key, value)
	}
	complain(strings.ReplaceAll(line, "\n", `\n`))
}
