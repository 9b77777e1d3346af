command("mirror", function(args) return args.value end)
