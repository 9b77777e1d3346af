-- Rules come from users: each sees the order and a few functions, and nothing else of Lua.

local function sandbox(order)
  return {
    order = order,
    math = { floor = math.floor, max = math.max, min = math.min },
    string = { lower = string.lower, find = string.find, sub = string.sub },
    ipairs = ipairs, pairs = pairs, tostring = tostring, tonumber = tonumber,
  }
end

command("judge", function(args, ctx)
  local rule, mistake = load("return " .. args.rule, "rule", "t", sandbox(args.order))
  if not rule then rule, mistake = load(args.rule, "rule", "t", sandbox(args.order)) end
  if not rule then error({ type = "RuleError", message = mistake }) end
  local fine, verdict = pcall(rule)
  if not fine then error({ type = "RuleError", message = tostring(verdict) }) end
  return verdict
end)
