-- The commands that transcripts and misuse tests expect of a Lua bridge; handlers.py has the same.

local snakepit = require("snakepit")

on_start(function(args, ctx)
  if args.fail then error({ type = "Failure", message = "cannot start" }) end
  ctx.worker_state.start_args = args
end)

command("started", function(_, ctx) return ctx.worker_state.start_args end)

command("identity", function(args) return args.value end, "Return `value` as it came.")

command("later", function(args) return args.value end)

command("fail", function(args)
  error({
    type = "Failure",
    message = args.message or "boom",
    data = { field = "name" },
    cause = { type = "Inner", message = "deep down" },
  })
end)

command("count", function(_, ctx)
  ctx.state.count = (ctx.state.count or 0) + 1
  return ctx.state.count
end)

command("whoami", function(_, ctx)
  return { session = ctx.session_id or snakepit.null, worker = ctx.worker_id }
end)

command("deadline", function(_, ctx) return ctx:deadline() end)

command("log_line", function(args, ctx)
  ctx:log(args.message, args.level, args.fields)
  return "logged"
end)

command("unencodable", function(args)
  local cycle = {}
  cycle.self = cycle
  local deep = {}
  for _ = 1, 300 do deep = { deep } end
  local values = {
    nan = 0 / 0,
    infinity = 1 / 0,
    ["lone surrogate"] = "x\xED\xA0\x80",
    cycle = cycle,
    deep = deep,
    object = setmetatable({}, { __name = "Thing" }),
    bytes = "x\xFF",
    mixed = { 1, 2, name = "x" },
    hole = { 1, nil, 3 },
    key = { [5] = "x" },
    ["function"] = print,
  }
  return { a = { values[args.kind] } }
end)

command("text", function(args) return ("x"):rep(args.size) end)

local function blob(size)
  local bytes = {}
  for i = 1, size do bytes[i] = string.char((i - 1) % 256) end
  return snakepit.bytes(table.concat(bytes))
end

command("blob", function(args) return blob(args.size) end)

command("nested_blobs", function()
  return {
    ["a/b"] = { snakepit.bytes("one") },
    ["t~"] = { empty = snakepit.bytes(""), two = snakepit.bytes("\0\1") },
    n = snakepit.null,
  }
end)

command("reverse", function(args) return snakepit.bytes(args.data.data:reverse()) end)

command("sizes", function(args)
  local sizes = snakepit.array()
  for i, item in ipairs(args.items) do sizes[i] = #item end
  return sizes
end)

command("empty", function()
  return { plain = {}, array = snakepit.array(), object = snakepit.object(), null = snakepit.null, whole = 1.0 }
end)

command("throw_text", function() error("just text") end)

command("print_text", function(args)
  print(args.line)
  return "printed"
end)

local function read_all(program)
  local pipe = assert(io.popen(program))
  local text = pipe:read("a")
  pipe:close()
  return text
end

--- Write to descriptor 1 as native code would.
command("write_fd_1", function(args)
  local cat = assert(io.popen("cat", "w"))
  cat:write(args.line)
  cat:close()
  return "written"
end)

command("child_reads_stdin", function() return read_all("cat") end)

command("child_sees", function()
  local words = snakepit.array()
  local script = "ls -l /proc/self/fd </dev/null | grep -c pipe: ; env | grep -c '^SNAKEPIT_.*FD'"
  for word in read_all(script):gmatch("%S+") do words[#words + 1] = word end
  return words
end)

command("hang", function(_, ctx)
  ctx:log("hanging")
  read_all("exec sleep infinity")
end)

--- Computes for so many milliseconds; with null, waits for ever.
local function stall(args)
  if args.ms == snakepit.null then read_all("exec sleep infinity") end
  local stop = os.clock() + args.ms / 1000
  while os.clock() < stop do end
  return args.ms
end

command("stall", stall)
command("stall_later", stall)

command("pid", function()
  local pid = io.open("/proc/self/stat"):read("n")
  return pid
end)
