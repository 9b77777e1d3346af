#!/bin/sh
_=[[ # To sh this is an assignment; to Lua all of the shell's part is one string.
# Lua can neither move a descriptor nor change its environment: the shell does, and becomes Lua.
#     sh snakepit_bridge.lua [--lua LUA [ARG ...] snakepit_bridge.lua] [--handlers FILE]
if [ "$1" = --lua ]; then
  shift
else
  for lua in lua5.4 lua5.3 lua; do command -v "$lua" >/dev/null && break; done
  set -- "$lua" "$0" "$@"
fi
if [ "$SNAKEPIT_FDS" ]; then
  set -- "$@" "--fds=$SNAKEPIT_FDS"
elif ! [ -S /dev/fd/0 ] && ! [ -S /dev/fd/1 ]; then # a socket cannot be opened by its number: Lua must use 0 and 1
  exec 3<&0 4>&1 </dev/null >/dev/null
  [ -e /dev/fd/2 ] && exec >&2
  set -- "$@" --fds=3,4
fi
unset SNAKEPIT_FDS SNAKEPIT_CLAIM_FD
exec "$@"
]]
_ = nil

-- Snakepit's Lua bridge: answers one host's framed requests, in order, with the commands of a handler file.
--
-- Lua 5.3 or newer, its standard library only.  It also runs as `lua snakepit_bridge.lua [--handlers FILE]`, then
-- without what the shell above does.  The normative text is PROTOCOL.md, one folder up.

-- The globals are the handlers': what they put into one by chance (a forgotten `local`) must not reach the bridge.
local _G = _G
local _ENV = {}
for name, value in _G.next, _G do
  if _G.type(value) == "table" and value ~= _G then
    local library = {}
    for key, item in _G.next, value do library[key] = item end
    value = library
  end
  _ENV[name] = value
end

local byte, find, format, gsub, match, sub = string.byte, string.find, string.format, string.gsub, string.match, string.sub
local pack, unpack, concat, math_type = string.pack, string.unpack, table.concat, math.type

local BRIDGE_VERSION = "1.0"
local DEFAULT_MAX_FRAME = 64 * 1024 * 1024
local LARGEST_MAX_FRAME = 128 * 1024 * 1024 - 1
local MAX_DEPTH = 256 -- levels of nesting in a result; the host's limit for args is the same
local MAX_MESSAGE_DEPTH = 512 -- arbitrary: args at the host's limit and the message around them, with room
local MAX_TEXT_BYTES = 64 * 1024 -- of an error's message, and of its traceback
local HELD_BYTES = 64 * 1024 -- the default capacity of a pipe
local BATCH_WAIT_S = 0.001 -- PROTOCOL.md, "batch"
local EINTR, EPIPE = 4, 32
-- No "claim": a read of Lua's waits when the pipe is empty.
local CAPABILITIES = { "errors", "pipeline", "session", "deadline", "attachments", "batch", "log" }

----------------------------------------------------------------------------------------------------- values

local Null = {
  __name = "null",
  __tostring = function() return "null" end,
  __newindex = function() error("null takes no fields", 2) end,
}
local null = setmetatable({}, Null)
local Array, Object = { __name = "array" }, { __name = "object" }
local Bytes = {
  __name = "bytes",
  __len = function(bytes) return #bytes.data end,
  __tostring = function(bytes) return bytes.data end,
  __eq = function(a, b) return a.data == b.data end,
}
local Large = { __name = "integer" } -- one that 64 bits cannot hold: its `digits`, and `at` which index they were
local Refusal = { __name = "refusal" } -- an error that is answered without a traceback: the message says it all
local Raised = { __name = "raised" } -- what a handler raised, and where

local function refusal(code, kind, message)
  return setmetatable({ code = code, type = kind, message = message }, Refusal)
end

local function bad_args(...)
  return refusal("bad_args", "InvalidArguments", format(...))
end

local function is_object(value) return getmetatable(value) == Object end
local function is_array(value) return getmetatable(value) == Array end

--- Where text stops being UTF-8: the index of a byte, or nil.
local function invalid_utf8(text)
  local length, at = utf8.len(text)
  if length and find(text, "\xED", 1, true) then at = find(text, "\xED[\xA0-\xBF]") end -- Lua 5.3 takes surrogates
  return at
end

local function valid_text(text)
  if not invalid_utf8(text) then return text end
  return (gsub(text, "[\x80-\xFF]+", function(run) return invalid_utf8(run) and "\u{FFFD}" or run end))
end

--- Text that is UTF-8 and has at most MAX_TEXT_BYTES.
local function cap(text)
  text = valid_text(text)
  if #text <= MAX_TEXT_BYTES then return text end
  return sub(text, 1, utf8.offset(text, 0, MAX_TEXT_BYTES - 4) - 1) .. "[...]"
end

------------------------------------------------------------------------------------------------------- JSON

local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }
local CONTROLS = {} -- "\0" to "\31"
local ESCAPED = { "\\", '"' } -- the keys of ESCAPES; the backslash first, since the others bring more of them
for code = 0, 31 do
  local char = string.char(code)
  ESCAPES[char] = ESCAPES[char] or format("\\u%04x", code)
  CONTROLS[code + 1], ESCAPED[code + 3] = char, char
end

-- Bytes that UTF-8 does not have.  While a message is read they stand for a quote, a backslash and white space, where
-- these would mislead the reader; NOTHING precedes an escaped character that is no text outside of strings.
local QUOTE, BACKSLASH, SPACE, NOTHING = "\xFF", "\xFE", "\xFD", "\xFC"
local UNESCAPES = {
  ['\\"'] = QUOTE, ["\\\\"] = BACKSLASH, ["\\/"] = "/",
  ["\\b"] = "\b", ["\\f"] = "\f", ["\\n"] = "\n", ["\\r"] = "\r", ["\\t"] = "\t",
}

local PLAIN = "^[a-~ #-[^-`!%]]*$" -- ASCII that needs no escape
local LONG = 4096 -- from here on a search for one certain byte, of which C takes many at a time, costs next to nothing

local function has_control(text)
  if #text < LONG then return not find(text, "^%C*$") end
  for i = 1, 32 do
    if find(text, CONTROLS[i], 1, true) then return true end
  end
  return false
end

local function quote(text)
  if #text < LONG then return '"' .. gsub(text, '[%c"\\]', ESCAPES) .. '"' end
  local kinds = {}
  for i = 1, #ESCAPED do
    if find(text, ESCAPED[i], 1, true) then kinds[#kinds + 1] = ESCAPED[i] end
  end
  if kinds[4] then return '"' .. gsub(text, '[%c"\\]', ESCAPES) .. '"' end
  for _, char in ipairs(kinds) do text = gsub(text, char, ESCAPES[char]) end -- three take as long as all in one
  return '"' .. text .. '"'
end

local has_comma = false -- whether the locale's decimal point is no point; a handler, or what it calls, may set one

--- The shortest text that is read as the same float, and as a float.
local function float_text(value)
  local text = format("%.15g", value)
  if tonumber(text) ~= value then text = format("%.16g", value) end
  if tonumber(text) ~= value then text = format("%.17g", value) end
  if has_comma then text = gsub(text, "[^-+%deE]+", ".") end
  return find(text, "^-?%d+$") and text .. ".0" or text
end

--- A key as it stands in a path.
local function pointer_part(key)
  return (gsub(gsub(tostring(key), "~", "~0"), "/", "~1"))
end

local function shorten(path)
  return #path <= 200 and path or sub(path, 1, 120) .. "..." .. sub(path, -60)
end

--- Encode a value strictly.
--
-- `attachments` receives {path, data} for each bytes value; nil: bytes cannot travel.
-- Raises a Refusal (encode_error) with the path of the first value that cannot be sent.
local function encode(value, root, attachments)
  has_comma = format("%.1f", 0.5) ~= "0.5"
  local out, size = {}, 0
  local keys, parents = {}, {} -- keys[d]: where the walk is at depth d

  local function path(depth)
    local parts = { root }
    for d = 1, depth do
      parts[d + 1] = pointer_part(keys[d])
    end
    return concat(parts, "/")
  end

  local function refuse(depth, ...)
    error(refusal("encode_error", "EncodeError", cap(shorten(path(depth)) .. ": " .. format(...))))
  end

  local function check_text(text, depth)
    local at = invalid_utf8(text)
    if not at then return end
    if find(text, "^\xED[\xA0-\xBF]", at) then
      refuse(depth, "text with a lone surrogate at index %d is not UTF-8", utf8.len(sub(text, 1, at - 1)))
    end
    refuse(depth, "text with the byte 0x%02X at offset %d is not UTF-8; send bytes as snakepit.bytes(s)", byte(text, at), at - 1)
  end

  local function put(text)
    size = size + 1
    out[size] = text
  end

  local write

  local function write_array(array, depth)
    local length, count = #array, 0
    for _ in next, array do count = count + 1 end
    if count ~= length then refuse(depth, "a table whose keys are neither all text nor 1 to n (snakepit.null stands for a hole) is not JSON") end
    put("[")
    for i = 1, length do
      if i > 1 then put(",") end
      keys[depth + 1] = i - 1
      write(array[i], depth + 1)
    end
    put("]")
  end

  local function write_object(object, depth)
    local before = "{"
    for key, item in next, object do
      if type(key) ~= "string" then
        refuse(depth, "key %s is a %s; JSON keys are text", tostring(key), math_type(key) or type(key))
      end
      check_text(key, depth)
      put(before)
      put(quote(key))
      put(":")
      keys[depth + 1] = key
      write(item, depth + 1)
      before = ","
    end
    put(before == "{" and "{}" or "}")
  end

  local function write_table(value, depth)
    local kind = getmetatable(value)
    if kind == Null then return put("null") end
    if kind == Bytes then
      if type(value.data) ~= "string" then refuse(depth, "bytes whose data is a %s, not a string", type(value.data)) end
      if not attachments then refuse(depth, "bytes cannot travel: the host takes no attachments") end
      attachments[#attachments + 1] = { path = "/" .. path(depth), data = value.data }
      return put("null")
    end
    if kind ~= nil and kind ~= Array and kind ~= Object then
      local name = type(kind) == "table" and type(kind.__name) == "string" and kind.__name
      refuse(depth, "%s is not JSON; convert it to a plain table", name or "a table with a metatable")
    end
    if parents[value] then refuse(depth, "a cycle: the value contains itself") end
    if depth >= MAX_DEPTH then refuse(depth, "nested deeper than %d levels", MAX_DEPTH) end
    parents[value] = true
    local first = next(value)
    if kind == Array or kind == nil and first ~= nil and type(first) ~= "string" then
      write_array(value, depth)
    else
      write_object(value, depth)
    end
    parents[value] = nil
  end

  function write(value, depth)
    local kind = type(value)
    if kind == "string" then
      if #value < LONG and find(value, PLAIN) then return put('"' .. value .. '"') end
      check_text(value, depth)
      put(quote(value))
    elseif kind == "number" then
      if math_type(value) == "integer" then return put(format("%d", value)) end
      if value ~= value then refuse(depth, "NaN is not JSON") end
      if value - value ~= 0 then refuse(depth, "%s is not JSON", value > 0 and "Infinity" or "-Infinity") end
      put(float_text(value))
    elseif kind == "table" then
      write_table(value, depth)
    elseif kind == "boolean" then
      put(value and "true" or "false")
    elseif value == nil then
      if depth > 0 then refuse(depth, "an array with a hole; write snakepit.null") end
      put("null")
    else
      refuse(depth, "%s is not JSON", kind)
    end
  end

  write(value, 0)
  return concat(out)
end

--- What stands for the character of this code.
local function code_point(code)
  if code == 34 then return QUOTE end
  if code == 92 then return BACKSLASH end
  return (code >= 32 and code < 127 and NOTHING or "") .. utf8.char(code)
end

local function pair_of_surrogates(high, low)
  return code_point(0x10000 + (tonumber(high, 16) - 0xD800 << 10) + tonumber(low, 16) - 0xDC00)
end

local UnicodeEscapes = {} -- {"\\u00e9": what stands for it}, filled as they come
function UnicodeEscapes.__index(known, escape)
  local code = tonumber(match(escape, "^\\u(%x%x%x%x)$") or error("\\u without four digits", 0), 16)
  if code >= 0xD800 and code < 0xE000 then error("a lone surrogate " .. escape, 0) end
  known[escape] = code_point(code)
  return known[escape]
end

--- Replace all escapes in a JSON text.  Outside of strings they are still errors: nothing that replaces one can be
-- there.
local function replace_escapes(text)
  local some_escaped = find(text, "\\\\", 1, true)
  if some_escaped then
    text = gsub(text, "\\.", UNESCAPES)
  else -- every backslash begins an escape, and a pattern of certain characters takes half the time
    if find(text, '\\"', 1, true) then text = gsub(text, '\\"', QUOTE) end
    if find(text, "\\n", 1, true) then text = gsub(text, "\\n", "\n") end
  end
  if find(text, "\\ud", 1, true) or find(text, "\\uD", 1, true) then
    text = gsub(text, "\\u([dD][89abAB]%x%x)\\u([dD][c-fC-F]%x%x)", pair_of_surrogates)
  end
  if find(text, "\\u", 1, true) then text = gsub(text, "\\u....", setmetatable({}, UnicodeEscapes)) end
  if not some_escaped and find(text, "\\", 1, true) then text = gsub(text, "\\.", UNESCAPES) end
  local at = find(text, "\\", 1, true)
  if at then error("a bad escape " .. valid_text(sub(text, at, at + 5)), 0) end
  return text
end

--- Decode strict JSON.  Returns the value, and whether some integer in it is a Large.
--
-- Raises text that says what is wrong.
local function decode(text)
  if invalid_utf8(text) then error("not UTF-8", 0) end
  local has_escapes = find(text, "\\", 1, true)
  local has_large = false

  local function fail(what, at)
    error(has_escapes and what or format("%s at offset %d", what, at - 1), 0) -- the text read is shorter than the host's
  end

  -- Control characters and escapes are replaced once in the whole text, so that most strings need no look of their own.
  local has_spaces = has_control(text)
  if has_spaces then
    text = gsub(text, "[\t\n\r]", SPACE)
    local at = find(text, "[\0-\31]")
    if at then fail("a control character", at) end
  end
  if has_escapes then text = replace_escapes(text) end

  local function skip(at)
    local char = byte(text, at)
    if char == 32 or char == 0xFD then return find(text, "[^ \xFD]", at) or #text + 1 end
    return at
  end

  local function string_at(start)
    local stop = find(text, '"', start, true)
    if not stop then fail("a string without an end", start - 1) end
    local raw = sub(text, start, stop - 1)
    if has_escapes then
      if find(raw, QUOTE, 1, true) then raw = gsub(raw, QUOTE, '"') end
      if find(raw, BACKSLASH, 1, true) then raw = gsub(raw, BACKSLASH, "\\") end
      if find(raw, NOTHING, 1, true) then raw = gsub(raw, NOTHING, "") end
    end
    if has_spaces and find(raw, SPACE, 1, true) then fail("a control character in a string", start - 1) end
    return raw, stop + 1
  end

  local function number_at(start)
    local _, last = find(text, "^-?%d+", start)
    if not last then fail("no JSON value", start) end
    local literal, value
    if find(text, "^[.eE]", last + 1) then
      literal = match(text, "^[-+.%deE]+", start)
      if not (find(literal, "^-?%d+%.%d+$") or find(literal, "^-?%d+%.?%d*[eE][-+]?%d+$")) or find(literal, "%.[eE]") then
        fail("a bad number", start)
      end
      value = tonumber(literal)
      if value - value ~= 0 then error("number " .. sub(literal, 1, 40) .. " is out of range", 0) end
    else
      literal = sub(text, start, last)
      value = tonumber(literal)
      if math_type(value) ~= "integer" then
        value, has_large = setmetatable({ digits = sub(literal, 1, 80), at = start }, Large), true
      end
    end
    if find(literal, "^-?0%d") then fail("a number with a leading zero", start) end
    return value, start + #literal
  end

  local value_at

  local function object_at(at, depth)
    local object = setmetatable({}, Object)
    at = skip(at)
    if byte(text, at) == 125 then return object, at + 1 end
    while true do
      if byte(text, at) ~= 34 then fail("a key is due", at) end
      local key
      key, at = string_at(at + 1)
      if byte(text, at) ~= 58 then
        at = skip(at)
        if byte(text, at) ~= 58 then fail("':' is due", at) end
      end
      object[key], at = value_at(at + 1, depth)
      local char = byte(text, at)
      if char ~= 44 then
        at = skip(at)
        char = byte(text, at)
        if char == 125 then return object, at + 1 end
        if char ~= 44 then fail("',' or '}' is due", at) end
      end
      at = skip(at + 1)
    end
  end

  local function array_at(at, depth)
    local array, length = setmetatable({}, Array), 0
    at = skip(at)
    if byte(text, at) == 93 then return array, at + 1 end
    while true do
      length = length + 1
      array[length], at = value_at(at, depth)
      local char = byte(text, at)
      if char ~= 44 then
        at = skip(at)
        char = byte(text, at)
        if char == 93 then return array, at + 1 end
        if char ~= 44 then fail("',' or ']' is due", at) end
      end
      at = at + 1
    end
  end

  function value_at(at, depth)
    local char = byte(text, at)
    if char == 32 or char == 0xFD then
      at = skip(at)
      char = byte(text, at)
    end
    if char == 34 then return string_at(at + 1) end
    if char == 123 or char == 91 then
      if depth >= MAX_MESSAGE_DEPTH then fail(format("nested deeper than %d levels", MAX_MESSAGE_DEPTH), at) end
      return (char == 123 and object_at or array_at)(at + 1, depth + 1)
    end
    if char == 110 and find(text, "^null", at) then return null, at + 4 end
    if char == 116 and find(text, "^true", at) then return true, at + 4 end
    if char == 102 and find(text, "^false", at) then return false, at + 5 end
    return number_at(at)
  end

  local value, at = value_at(1, 0)
  if skip(at) <= #text then fail("more text after the value", at) end
  return value, has_large
end

--- The refusal of the first Large in a value, or nil.
local function refuse_large(value, root)
  local first, place
  local function look(item, path)
    local kind = getmetatable(item)
    if kind == Large then
      if not first or item.at < first.at then first, place = item, path end
    elseif kind == Object or kind == Array then
      for key, below in next, item do look(below, path .. "/" .. (kind == Array and key - 1 or pointer_part(key))) end
    end
  end
  look(value, root)
  if not first then return end
  return bad_args("%s: integer %s is beyond 64 bits and would be rounded; send it as text", shorten(place), first.digits)
end

----------------------------------------------------------------------------------------------------- frames

local input, output -- the frames' files
local max_frame = DEFAULT_MAX_FRAME
local held, held_bytes = {}, 0 -- INVARIANT: whole frames that wait to be written together; none while the worker waits
local stderr = io.stderr

local function complain(line)
  stderr:write("snakepit_bridge: " .. line .. "\n")
end

local function usage(...)
  complain(format(...) .. "; usage: snakepit_bridge.lua [--handlers FILE] [--mode ANYTHING]")
  os.exit(2)
end

local function put(data)
  local written, problem, number = output:write(data)
  if written then return end
  if number ~= EPIPE then complain("cannot write a reply: " .. problem) end
  os.exit(number == EPIPE and 0 or 2)
end

--- Write the frames that are held, in one system call.
local function flush()
  if held_bytes == 0 then return end
  local data = concat(held)
  held, held_bytes = {}, 0
  put(data)
end

--- Write one frame with those that follow it, at the latest at the next flush.
local function hold(payload)
  if #payload > HELD_BYTES then
    flush()
    put(pack(">I4", #payload))
    return put(payload)
  end
  held[#held + 1] = pack(">s4", payload)
  held_bytes = held_bytes + 4 + #payload
  if held_bytes > HELD_BYTES then flush() end
end

local reply_error

local function visible(data)
  return (gsub(gsub(data, "\\", "\\\\"), "[^ -~]", function(char) return format("\\x%02x", byte(char)) end))
end

--- Answer what is no request, with its id if one can be seen, and say so on stderr.
local function bad_frame(reason, seen)
  local id = match(sub(seen, 1, 4096), '[{,]%s*"id"%s*:%s*(%d+)%s*[,}]')
  local message = cap(format('bad frame: %s; bytes seen: "%s"', reason, visible(sub(seen, 1, 80))))
  complain(message)
  reply_error(id and #id < 16 and tonumber(id) or "null", nil, refusal("internal", "BadFrame", message))
  flush()
end

--- The stream cannot be followed any further.
local function broken(reason, seen)
  bad_frame(reason, seen)
  os.exit(2)
end

--- The length of the next frame, or nil at the end of the requests.
local function read_length()
  local head, problem, number = input:read(4)
  if not head then
    if not problem then return end
    if number == EINTR then return read_length() end -- a SIGINT
    complain("cannot read requests: " .. problem)
    os.exit(2)
  end
  if #head < 4 then broken("the request stream ended inside a length", head) end
  local length = unpack(">I4", head)
  if length == 0 or length > max_frame then broken(format("length %d is not in 1..%d", length, max_frame), head) end
  return length
end

local function read_payload(length)
  local payload = input:read(length) or ""
  if #payload < length then
    broken(format("the request stream ended after %d of a frame's %d bytes", #payload, length), payload)
  end
  return payload
end

--- Read the raw frames of one attachment.
local function read_raw(size)
  local parts, left = {}, size
  while left > 0 do
    local due = math.min(max_frame, left)
    local length = read_length()
    if length ~= due then
      local got = length and "a frame of " .. length or "the end of the stream"
      broken(format("attachment: a frame of %d bytes was due, got %s", due, got), "")
    end
    parts[#parts + 1] = read_payload(due)
    left = left - due
  end
  return concat(parts)
end

--- Open a descriptor by its number; a file of its own, since Lua has no way to adopt the descriptor itself.
local function open_descriptor(number, mode)
  local file, problem = io.open("/dev/fd/" .. number, mode)
  if not file then usage("descriptor %s of the frames: %s (Lua opens pipes and files, not sockets)", number, problem) end
  return file
end

--- Take the frames' descriptors out of user code's reach, as far as Lua can.
local function open_stream(fds)
  fds = fds or os.getenv("SNAKEPIT_FDS")
  if fds then
    local requests, replies = match(fds, "^(%d+),(%d+)$")
    if not requests then usage("SNAKEPIT_FDS must be two numbers, got '%s'", fds) end
    input, output = open_descriptor(requests, "rb"), open_descriptor(replies, "ab")
  else
    local io = _G.io
    input, output = io.stdin, io.stdout
    io.stdin, io.stdout = assert(io.open("/dev/null", "rb")), stderr
    io.input(io.stdin)
    io.output(stderr)
    _G.print = function(...)
      local words = table.pack(...)
      for i = 1, words.n do words[i] = tostring(words[i]) end
      stderr:write(concat(words, "\t"), "\n")
    end
  end
  output:setvbuf("no")
  if _G.io.stdout ~= stderr then _G.io.stdout:setvbuf("line") end
end

------------------------------------------------------------------------------------------------------- time

local uptime = io.open("/proc/uptime")

--- Seconds that only grow, in steps of 10 ms; of 1 s where the system has no /proc/uptime.
local function now()
  if not uptime then return os.time() end
  uptime:seek("set")
  return uptime:read("n")
end

local began = now()

--------------------------------------------------------------------------------------------------- handlers

local commands = {} -- {name: {run, params, doc, where}}; without `where` it is a built-in
local starters = {}

local snakepit = {
  null = null,
  --- Mark a table as a JSON array, also when it is empty.
  array = function(list) return setmetatable(list or {}, Array) end,
  --- Mark a table as a JSON object.
  object = function(map) return setmetatable(map or {}, Object) end,
  --- Wrap a string that travels as bytes; `data` holds it.
  bytes = function(data)
    if type(data) ~= "string" then error("snakepit.bytes takes a string, not a " .. type(data), 2) end
    return setmetatable({ data = data }, Bytes)
  end,
}

--- Make a function a command: command("render", function(args, ctx) ... end, "What it does").
function snakepit.command(name, run, doc)
  if type(name) ~= "string" or name == "" or invalid_utf8(name) then
    error(format("a command's name is text, not %s", tostring(name)), 2)
  end
  if type(run) ~= "function" then error(format("command '%s': a %s is no function", name, type(run)), 2) end
  if name == "ping" then error("command 'ping' belongs to the bridge", 2) end
  local old, caller = commands[name], debug.getinfo(2, "Sl")
  if old and old.where then error(format("command '%s' is defined twice, first at %s", name, old.where), 2) end
  local where = format("%s:%d", caller.short_src, caller.currentline)
  commands[name] = { run = run, params = {}, doc = type(doc) == "string" and cap(doc) or "", where = where }
end

--- Run a function before the worker is ready: on_start(function(args, ctx) ... end).
function snakepit.on_start(run)
  if type(run) ~= "function" then error(format("on_start: a %s is no function", type(run)), 2) end
  starters[#starters + 1] = run
end

local function load_handlers(name)
  local package = _G.package
  package.path = (match(name, "^.*/") or "./") .. "?.lua;" .. package.path
  package.loaded.snakepit = snakepit
  _G.snakepit, _G.command, _G.on_start = snakepit, snakepit.command, snakepit.on_start
  local chunk, problem = loadfile(name)
  if not chunk then error(problem, 0) end
  chunk(name)
end

----------------------------------------------------------------------------------------------------- replies

local level = 0
local agreed = {} -- {capability: true}

local function head(id, index)
  return index and format('{"id":%s,"index":%d', id, index) or format('{"id":%s', id)
end

local function tail()
  return level == 0 and os.date('!,"timestamp":"%Y-%m-%dT%H:%M:%S.000Z"}') or "}"
end

--- Class, message, data and cause of whatever was raised; of a cause itself only class and message.
local function describe(thrown, is_cause)
  if type(thrown) ~= "table" then return { type = "LuaError", message = tostring(thrown) } end
  local kind = getmetatable(thrown)
  local name = thrown.type or type(kind) == "table" and kind.__name
  local report = { type = type(name) == "string" and name ~= "" and name or "LuaError" }
  if type(thrown.message) == "string" then
    report.message = thrown.message
  else
    report.message = type(kind) == "table" and kind.__tostring and tostring(thrown) or report.type
  end
  if is_cause then return report end
  if thrown.data ~= nil then
    local encoded, text = pcall(encode, thrown.data, "data")
    report.data = encoded and text or nil
  end
  if thrown.cause ~= nil then
    local cause = describe(thrown.cause, true)
    report.cause = format('{"type":%s,"message":%s}', quote(cap(cause.type)), quote(cap(cause.message)))
  end
  return report
end

--- The message handler of every call of user code.
local function traced(thrown)
  if getmetatable(thrown) == Refusal then return thrown end
  if thrown == "attempt to yield across a C-call boundary" then -- true of the bridge; for a handler:
    local caller = debug.getinfo(3, "Sl")
    thrown = format("%s:%d: attempt to yield from outside a coroutine", caller.short_src, caller.currentline)
  end
  local described, report = pcall(describe, thrown)
  if not described then report = { type = "LuaError", message = "an error that cannot be described" } end
  if report.message == "" then report.message = report.type end
  local trace = debug.traceback(report.message, 2)
  report.traceback = match(trace, "^(.*)\n%s*%[C%]: in function 'xpcall'") or trace -- without the bridge's own part
  return setmetatable(report, Raised)
end

--- Whether the reply with this error fits into a frame, and was sent.
local function send_error(id, index, report)
  local body
  if agreed.errors then
    local parts = {
      format('{"code":"%s","type":%s,"message":%s', report.code or "handler_error", quote(cap(report.type)), quote(report.message)),
      '"traceback":' .. (report.traceback and quote(report.traceback) or "null"),
    }
    if report.data then parts[#parts + 1] = '"data":' .. report.data end
    if report.cause then parts[#parts + 1] = '"cause":' .. report.cause end
    parts[#parts + 1] = '"language":"lua"}'
    body = concat(parts, ",")
  else
    body = quote(report.message)
  end
  local text = concat({ head(id, index), ',"success":false,"error":', body, tail() })
  if #text > max_frame then return false end
  hold(text)
  return true
end

function reply_error(id, index, problem)
  local kind = getmetatable(problem)
  if kind ~= Refusal and kind ~= Raised then problem = traced(problem) end -- such as an error without a handler's run
  local report = {
    code = problem.code, type = problem.type, data = problem.data, cause = problem.cause,
    message = cap(problem.message), traceback = problem.traceback and cap(problem.traceback),
  }
  if send_error(id, index, report) then return end
  local length = math.max(16, max_frame // 8)
  local message = #report.message <= length and report.message
    or sub(report.message, 1, utf8.offset(report.message, 0, length + 1) - 1)
  send_error(id, index, { code = report.code, type = report.type, message = message })
end

local function reply(id, index, body, attachments)
  local list = ""
  if attachments[1] then
    -- The order of a table's keys is Lua's; that of the attachments is the same each time.
    table.sort(attachments, function(a, b) return a.path < b.path end)
    local entries = {}
    for i, entry in ipairs(attachments) do
      entries[i] = format('{"path":%s,"kind":"bytes","len":%d}', quote(entry.path), #entry.data)
    end
    list = ',"attachments":[' .. concat(entries, ",") .. "]"
  end
  local text = concat({ head(id, index), ',"success":true,"result":', body, list, tail() })
  if #text > max_frame then
    local message = format("the encoded reply has %d bytes; the limit is %d (max_frame)", #text, max_frame)
    return reply_error(id, index, refusal("too_large", "ResultTooLarge", message))
  end
  hold(text)
  for _, entry in ipairs(attachments) do
    for from = 1, #entry.data, max_frame do hold(sub(entry.data, from, from + max_frame - 1)) end
  end
end

----------------------------------------------------------------------------------------------------- context

local worker_id = "unknown"
local worker_state = {}
local sessions = {} -- {session id: the `state` of its handlers}
local started = false
local current -- INVARIANT: the context whose handler runs, or nil

--- What a handler gets as its second parameter.
local Context = { __name = "context" }
Context.__index = Context

local function new_context(id, session, deadline)
  local state = {}
  if session then
    state = sessions[session] or state
    sessions[session] = state
  end
  return setmetatable({
    session_id = session, -- text, or nil
    worker_id = worker_id,
    state = state, -- lives as long as the session on this worker; without a session, as long as the request
    worker_state = worker_state, -- lives as long as the worker
    _id = id,
    _deadline = deadline,
  }, Context)
end

--- Seconds left of the caller's time, >= 0; nil without a limit.
function Context:deadline()
  return self._deadline and math.max(0, self._deadline - now())
end

--- Send a log record to the host; after the request has ended, or without the capability, a line on stderr.
function Context:log(message, severity, fields)
  message, severity = cap(tostring(message)), cap(tostring(severity or "info"))
  if fields == nil or fields == null then fields = {} end
  local encoded, text = pcall(encode, fields, "fields")
  if not encoded or byte(text) ~= 123 then
    local reason = encoded and "fields: not an object" or text.message
    text = '{"encode_error":' .. quote(reason) .. "}"
  end
  -- A log message before the first reply would precede the agreement it rests on.
  if started and current == self and agreed.log then
    local frame = format('{"type":"log","id":%d,"level":', self._id)
      .. concat({ quote(severity), ',"message":', quote(message), ',"fields":', text, "}" })
    if #frame <= max_frame then
      hold(frame)
      return flush()
    end
  end
  complain(format("[%s] %s%s", severity, gsub(message, "\n", "\\n"), text == "{}" and "" or " " .. text))
end

--------------------------------------------------------------------------------------------------- built-ins

local requests_handled = 0

local function names_of(map)
  local names = setmetatable({}, Array)
  for name in pairs(map) do names[#names + 1] = name end
  table.sort(names)
  return names
end

local function ping(args)
  local echo = args
  if is_object(args) then
    echo = setmetatable({}, Object)
    for key, value in pairs(args) do
      if key ~= "protocol" and key ~= "start_args" and key ~= "prepare" then echo[key] = value end
    end
  end
  return {
    status = "ok",
    bridge_type = "generic_lua",
    uptime = now() - began,
    requests_handled = requests_handled,
    timestamp = os.time(),
    lua_version = _VERSION,
    worker_id = is_object(args) and args.worker_id or worker_id,
    echo = echo,
  }
end

local function echo(args)
  return { status = "ok", echoed = args, timestamp = os.time() }
end

local OPERATIONS = {
  add = function(a, b) return a + b end,
  divide = function(a, b) return a / b end,
  multiply = function(a, b) return a * b end,
  subtract = function(a, b) return a - b end,
}

local function compute(args)
  if not is_object(args) then error(bad_args("compute: args must be an object")) end
  for _, field in ipairs({ "operation", "a", "b" }) do
    if args[field] == nil then error(bad_args("compute: missing field '%s'", field)) end
  end
  local operation, a, b = args.operation, args.a, args.b
  local run = type(operation) == "string" and OPERATIONS[operation]
  if not run then
    local shown = type(operation) == "string" and operation or encode(operation, "operation")
    local known = concat(names_of(OPERATIONS), ", ")
    error(bad_args("compute: unknown operation '%s'; one of %s", valid_text(sub(shown, 1, 200)), known))
  end
  if type(a) ~= "number" then error(bad_args("compute: field 'a' must be a number")) end
  if type(b) ~= "number" then error(bad_args("compute: field 'b' must be a number")) end
  if operation == "divide" and b == 0 then error(bad_args("compute: division by zero")) end
  local result, rounded = run(a, b), run(a + 0.0, b + 0.0)
  if rounded - rounded ~= 0 then error(bad_args("compute: result is not a finite number")) end
  -- An integer that wrapped around is off by 2^64 at least, a double by a few thousand.
  if math.abs(result - rounded) > 0x1p62 then error(bad_args("compute: result is beyond 64 bits")) end
  return { status = "ok", operation = operation, inputs = { a = a, b = b }, result = result, timestamp = os.time() }
end

local function info()
  return {
    status = "ok",
    bridge_info = {
      name = "Snakepit Lua Bridge",
      version = BRIDGE_VERSION,
      supported_commands = names_of(commands),
      uptime = now() - began,
      total_requests = requests_handled,
    },
    system_info = { lua_version = _VERSION, memory_bytes = math.floor(collectgarbage("count") * 1024) },
    timestamp = os.time(),
  }
end

commands.ping = { run = ping, params = {}, doc = "Tell that the worker is well." }
commands.echo = { run = echo, params = {}, doc = "Return the args as they came." }
commands.compute = { run = compute, params = { "operation", "a", "b" }, doc = "Add, subtract, multiply or divide two numbers." }
commands.info = { run = info, params = {}, doc = "Describe the bridge and its system." }

----------------------------------------------------------------------------------------------------- serving

local function answer(handler, id, index, args, session, deadline)
  requests_handled = requests_handled + 1
  local context = new_context(id, session, deadline)
  current = context
  local attachments = {}
  local done, result = xpcall(handler.run, traced, args, context)
  if done then
    done, result = pcall(encode, result, "result", agreed.attachments and attachments or nil)
  end
  current = nil
  if done then reply(id, index, result, attachments) else reply_error(id, index, result) end
end

--- Set the value at an RFC 6901 pointer.  Returns what is wrong, or nil.
local function place(message, pointer, data)
  if type(pointer) ~= "string" or sub(pointer, 1, 1) ~= "/" then return "not a JSON pointer" end
  local target, key = nil, nil
  local value = message
  for token in string.gmatch(pointer, "/([^/]*)") do
    target = value
    if is_object(target) then
      key = gsub(gsub(token, "~1", "/"), "~0", "~")
    elseif is_array(target) and find(token, "^%d+$") then
      key = tonumber(token) + 1
    else
      return "the path leads nowhere"
    end
    value = target[key]
  end
  if value ~= null then return "the place does not hold null" end
  target[key] = setmetatable({ data = data }, Bytes)
end

--- Read the raw frames that follow a message and put them in place.  Returns a Refusal, or nil.
local function take_attachments(message)
  local entries, problem = message.attachments, nil
  if entries == nil or entries == null then return end
  local countable = is_array(entries)
  for _, entry in ipairs(countable and entries or {}) do
    countable = countable and is_object(entry) and math_type(entry.len) == "integer" and entry.len >= 0
  end
  if not countable then broken("attachments without a usable 'len': the frames that follow cannot be counted", "") end
  for _, entry in ipairs(entries) do
    local data = read_raw(entry.len)
    local reason = entry.kind ~= "bytes" and "its kind is not 'bytes'" or place(message, entry.path, data)
    if reason then
      local shown = type(entry.path) == "string" and format("'%s'", valid_text(sub(entry.path, 1, 200))) or "without a path"
      problem = problem or bad_args("attachment %s: %s", shown, reason)
    end
  end
  return problem
end

local function given(value)
  if value ~= null then return value end
end

local function serve(id, message, has_large)
  local args, name = message.args, message.command
  if args == nil then args = setmetatable({}, Object) end
  local session, deadline, batch, problem
  if level > 0 then
    problem = take_attachments(message)
    session, deadline, batch = given(message.session), given(message.deadline_ms), message.batch
  end
  local function check(valid, ...)
    if not valid then problem = problem or bad_args(...) end
  end
  if has_large then problem = problem or refuse_large(args, "args") end
  check(not deadline or type(deadline) == "number", "request %d: 'deadline_ms' must be a number", id)
  check(not session or type(session) == "string", "request %d: 'session' must be a string", id)
  check(batch == nil or is_array(batch), "request %d: 'batch' must be an array", id)
  check(not is_array(batch) or #batch > 0, "request %d: 'batch' must not be empty", id)
  if level > 0 and message.claim == true then
    problem = problem or refusal("internal", "ProtocolError", "claim: Lua cannot look into the claim pipe without waiting")
  end
  check(type(name) == "string", "request %d: 'command' must be a string", id)
  local handler = commands[name]
  if not problem and not handler then
    local words = format("Unknown command: '%s'. Available: %s", name, concat(names_of(commands), ", "))
    problem = refusal("unknown_command", "UnknownCommand", words)
  end
  deadline = not problem and deadline and now() + deadline / 1000 or nil
  if not is_array(batch) or #batch == 0 then
    if problem then reply_error(id, nil, problem) else answer(handler, id, nil, args, session, deadline) end
    return flush()
  end
  local since_cpu, since = 0, 0
  for i, item in ipairs(batch) do
    -- CPU time is fine enough for items that compute; those that wait show in steps of 10 ms.
    local cpu, time = os.clock(), now()
    if cpu - since_cpu > BATCH_WAIT_S or time ~= since then
      flush()
      since_cpu, since = cpu, time
    end
    local refused = problem or has_large and refuse_large(item, "args")
    if refused then reply_error(id, i - 1, refused) else answer(handler, id, i - 1, item, session, deadline) end
  end
  flush()
end

--- Agree on a protocol.  Returns the handshake's part of the first reply, or nil at level 0.
local function negotiate(offer)
  local speaks = false
  for _, version in ipairs(is_object(offer) and is_array(offer.versions) and offer.versions or {}) do
    speaks = speaks or version == 1
  end
  if not speaks then return end
  level = 1
  local limit = offer.max_frame or DEFAULT_MAX_FRAME
  if math_type(limit) ~= "integer" or limit < 1 then
    error(bad_args("ping: protocol.max_frame must be an integer >= 1"))
  end
  max_frame = math.min(limit, LARGEST_MAX_FRAME)
  local offered, both = {}, setmetatable({}, Array)
  for _, name in ipairs(is_array(offer.capabilities) and offer.capabilities or {}) do offered[name] = true end
  for _, name in ipairs(CAPABILITIES) do
    if offered[name] then
      agreed[name] = true
      both[#both + 1] = name
    end
  end
  return {
    version = 1,
    max_frame = max_frame,
    capabilities = both,
    language = "lua",
    runtime = match(_VERSION, "%d.*"),
    bridge = BRIDGE_VERSION,
  }
end

local function process_id()
  local file = io.open("/proc/self/stat") or io.popen("echo $PPID")
  local pid = file:read("n")
  file:close()
  return pid
end

--- Negotiate, load the handlers, run their start function.  Returns the result of a level-1 ping, or nil.
local function start(message, has_large, handlers)
  local args = message.command == "ping" and is_object(message.args) and message.args or {}
  local protocol = negotiate(args.protocol)
  if type(args.worker_id) == "string" then worker_id = args.worker_id end
  local refused = has_large and refuse_large(args, "args")
  if refused then error(refused) end
  if handlers then load_handlers(handlers) end
  local start_args = args.start_args
  if start_args == nil then start_args = null end
  if start_args ~= null and not starters[1] then
    error(bad_args("start_args were given, but the handlers define no on_start function"))
  end
  local context = new_context(message.id, nil, nil)
  for _, run in ipairs(starters) do run(start_args, context) end
  if not protocol then return end
  protocol.pid = process_id()
  protocol.commands = setmetatable({}, Object)
  for name, handler in pairs(commands) do
    protocol.commands[name] = { params = setmetatable(handler.params, Array), doc = handler.doc }
  end
  requests_handled = requests_handled + 1
  local result = ping(args)
  result.protocol = protocol
  return result
end

--- Read one frame and do what it says.  Returns false at the end of the requests.
local function step(handlers)
  local length = read_length()
  if not length then return false end
  local payload = read_payload(length)
  local parsed, message, has_large = pcall(decode, payload)
  if not parsed or not is_object(message) then
    bad_frame(parsed and "not an object" or tostring(message), payload)
    return true
  end
  local id = message.id
  if message.command == nil and message.type ~= nil then
    if message.type == "session_end" and type(message.session) == "string" then sessions[message.session] = nil end
    return true
  end
  if math_type(id) ~= "integer" or id < 0 then
    bad_frame("no integer id", payload)
    return true
  end
  payload = nil -- a large frame is not kept while its handler runs
  if not started then
    local done, result = xpcall(start, traced, message, has_large, handlers)
    if not done then
      reply_error(id, nil, result)
      flush()
      os.exit(1)
    end
    started = true
    if result then
      reply(id, nil, encode(result, "result"), {})
      flush()
      return true
    end
  end
  serve(id, message, has_large)
  return true
end

-------------------------------------------------------------------------------------------------------- main

local function main(words)
  local fds = match(words[#words] or "", "^%-%-fds=(.*)$") -- the shell's word
  if fds then words[#words] = nil end
  local options, i = {}, 1
  while words[i] do
    local name, value = match(words[i], "^(%-%-%a+)=(.*)$")
    if not name then
      i, name, value = i + 1, words[i], words[i + 1]
    end
    if name ~= "--handlers" and name ~= "--mode" then usage("unknown option '%s'", name) end
    if not value then usage("option %s needs a value", name) end
    options[name] = value
    i = i + 1
  end
  open_stream(fds)
  while step(options["--handlers"]) do end
  os.exit(0)
end

-- The program `lua` answers the first SIGINT by an error in the main coroutine: nothing may run there.  Yet a handler
-- is in no coroutine of its own: the call through C refuses its yield, as plain Lua does.
local worker = coroutine.wrap(function(words)
  gsub("run", "run", function() main(words) end)
end)
worker({ ... })
