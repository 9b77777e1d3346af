# frozen_string_literal: true

# The commands that transcripts and misuse tests expect of a Ruby bridge; handlers.py has the same.

# The cause of a Failure.
class Inner < StandardError; end

# What +fail+ raises.
class Failure < StandardError
  attr_accessor :data
end

on_start do |**start_args|
  raise Failure, 'cannot start' if start_args[:fail]

  context.worker_state[:start_args] = start_args.empty? ? nil : start_args
end

command('started') { context.worker_state[:start_args] }

command('identity') { |value:| value }

command('positional') { |first, second = 'default'| [first, second] }

command('later') { |value:| Thread.new { value } }

command('fail') do |message: 'boom'|
  error = Failure.new(message)
  error.data = { field: 'name' }
  raise error, cause: Inner.new('deep down')
end

command('count') { context.state[:count] = context.state.fetch(:count, 0) + 1 }

command('whoami') { { session: context.session_id, worker: context.worker_id } }

command('deadline') { context.deadline_s }

command('log_line') do |message:, level:, fields:|
  context.log(message, level, **fields.transform_keys(&:to_sym))
  'logged'
end

command('unencodable') do |kind:|
  cycle = {}
  cycle['self'] = cycle
  values = {
    'nan' => Float::NAN,
    'infinity' => Float::INFINITY,
    'lone surrogate' => "x\xED\xA0\x80",
    'cycle' => cycle,
    'deep' => 300.times.reduce([]) { |inner, _| [inner] },
    'object' => Object.new,
    'two keys' => { 'k' => 1, k: 2 },
    'number as key' => { 1 => 2 },
    'invalid text' => "x\xFF",
    'time' => Time.at(0)
  }
  { a: [values.fetch(kind)] }
end

command('text') { |size:| 'x' * size }

command('blob') { |size:| (0...size).map { |i| i % 256 }.pack('C*') }

command('nested_blobs') { { 'a/b' => ['one'.b], 't~' => { 'empty' => ''.b, 'two' => "\x00\x01".b }, 'n' => nil } }

command('reverse') { |data:| data.reverse }

command('sizes') { |items:| items.map(&:size) }

command('print_text') do |line:|
  puts line
  'printed'
end

command('write_fd_1', 'Write to descriptor 1 as native code would.') do |line:|
  IO.for_fd(1, 'w', autoclose: false).syswrite(line)
  'written'
end

command('child_reads_stdin') { IO.popen(['cat'], &:read) }

command('child_sees') do
  script = "ls -l /proc/self/fd | grep -c pipe: ; env | grep -c '^SNAKEPIT_.*FD'"
  IO.popen(['sh', '-c', script, { in: File::NULL }], &:read).split
end

command('hang') do
  context.log('hanging')
  sleep
end

command('stall', doc: 'Compute for so many milliseconds; with null, wait for ever.') do |ms:|
  sleep if ms.nil?
  ends = Process.clock_gettime(Process::CLOCK_MONOTONIC) + ms / 1000.0
  nil while Process.clock_gettime(Process::CLOCK_MONOTONIC) < ends
  ms
end

command('stall_later') do |ms:|
  ms.nil? ? Thread.new { sleep } : ms
end

command('leave') { exit }

command('interrupt') { raise Interrupt }

command('pid') { Process.pid }
