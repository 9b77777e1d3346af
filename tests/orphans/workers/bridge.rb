# The example bridge of level 0, with the deeds of deeds.py as one more command.
require 'fiddle'
require 'json'

example = File.expand_path('../../conformance/ruby/bridge.rb', __dir__)
eval(File.read(example).sub("Bridge.new.run\n", ''), TOPLEVEL_BINDING, example)

AT_MOST_S = 120
SLEEP = Fiddle::Function.new(
  Fiddle.dlopen(nil)['sleep'], [Fiddle::TYPE_INT], Fiddle::TYPE_INT, need_gvl: true
)

class Bridge
  alias without_deeds initialize

  def initialize
    without_deeds
    @commands['act'] = method(:act)
    @commands['ping'] = method(:slow_ping) if ENV['START_DEED']
  end

  private

  def slow_ping(_args)
    act('deed' => ENV['START_DEED'], 'folder' => ENV['START_FOLDER'])
  end

  def act(args)
    found_family(args['folder'], args['deed'].start_with?('bare_'))
    case args['deed'].delete_prefix('bare_')
    when 'starting' then sleep(AT_MOST_S)
    when 'loop' then loop {}
    when 'c_call' then SLEEP.call(AT_MOST_S)
    when 'stopped' then Process.kill('STOP', Process.pid)
    when 'draining'
      Signal.trap('TERM', 'IGNORE')
      at_exit do
        File.write(File.join(args['folder'], "#{Process.pid}.leaving"), '')
        SLEEP.call(AT_MOST_S)
      end
    end
    Process.pid
  end

  def found_family(folder, bare)
    pids = { worker: Process.pid, plain: Process.spawn('sleep', '120'), escaped: Process.spawn('setsid', 'sleep', '120') }
    if bare
      env = { 'PATH' => ENV['PATH'] }
      pids[:bare] = Process.spawn(env, 'sleep', '120', unsetenv_others: true)
      pids[:vanished] = Process.spawn(env, 'setsid', 'sleep', '120', unsetenv_others: true)
    end
    note = File.join(folder, "#{Process.pid}.json")
    File.write("#{note}.new", JSON.generate(pids))
    File.rename("#{note}.new", note)
  end
end

Bridge.new.run
