#!/usr/bin/env ruby
# frozen_string_literal: true

# Ruby worker of the frame protocol: answers requests with the blocks of one handler file.
#
#     ruby snakepit_bridge.rb [--handlers FILE]
#
# Standard library only, Ruby 2.7 and later.  Handler files call +command+, +on_start+ and +context+ (in a class:
# <tt>Snakepit.command</tt> ...).  All requests run on the main thread, one after another; one further thread waits
# for the end of the request stream.  bridges/PROTOCOL.md is the normative text.

require 'io/wait'
require 'json'

module Snakepit
  BRIDGE_VERSION = '1.0'
  DEFAULT_MAX_FRAME = 64 * 1024 * 1024
  LARGEST_MAX_FRAME = 128 * 1024 * 1024 - 1
  MAX_DEPTH = 256 # levels of nesting in a result; the host's limit for args is the same
  MAX_MESSAGE_DEPTH = 512 # arbitrary: args at the host's limit and the message around them, with room
  MAX_TEXT_BYTES = 64 * 1024 # of an error's message, and of its traceback
  CHUNK_BYTES = 64 * 1024 # the default capacity of a pipe
  BATCH_WAIT_S = 0.001 # PROTOCOL.md, "batch"
  EOF_GRACE_S = 0.25 # arbitrary: lets a reply that is nearly done leave when only the requests have ended
  CAPABILITIES = %w[errors pipeline session deadline attachments batch log claim].freeze
  HANDSHAKE = %w[protocol start_args prepare].freeze # of the first ping; not echoed
  USAGE = 'usage: snakepit_bridge.rb [--handlers FILE] [--mode ANYTHING]'

  # A request is answered with this error without a traceback: the reply says it all.
  class Refused < StandardError
    attr_reader :code, :type

    def initialize(code, type, message)
      super(message)
      @code = code
      @type = type
    end
  end

  # The request stream cannot be followed any further: a bad length, or an end inside a frame.
  class FramingError < StandardError; end

  # A payload is no request.
  class BadFrame < StandardError; end

  module_function

  def bad_args(message)
    Refused.new('bad_args', 'InvalidArguments', message)
  end

  # Writes one line to stderr; a closed stderr is nobody's reader and no reason to stop.
  def complain(line)
    STDERR.write("snakepit_bridge: #{line}\n")
  rescue SystemCallError, IOError
    nil
  end

  # Returns text as UTF-8 of at most MAX_TEXT_BYTES, whatever its encoding and its bytes.
  def cap(text)
    text = text.to_s
    text = text.dup.force_encoding(Encoding::UTF_8) if [Encoding::BINARY, Encoding::US_ASCII].include?(text.encoding)
    text = text.encode(Encoding::UTF_8, invalid: :replace, undef: :replace) unless text.encoding == Encoding::UTF_8
    text = text.scrub { |bytes| bytes.bytes.map { |byte| format('\\x%02x', byte) }.join }
    text.bytesize > MAX_TEXT_BYTES ? "#{text.byteslice(0, MAX_TEXT_BYTES - 5).scrub('')}[...]" : text
  end

  def monotonic
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end

  # ------------------------------------------------------------------------------------------------ frames

  # Frames over two descriptors: exact reads (many frames from one system call), complete writes.
  class Stream
    attr_accessor :max_frame
    attr_reader :input, :output

    # Takes the descriptors of the frames out of user code's reach.
    def self.open
      names = ENV.delete('SNAKEPIT_FDS')
      claim = ENV.delete('SNAKEPIT_CLAIM_FD')
      input, output = names ? private_pipes(names) : standard_streams
      new(input, output, claim && IO.for_fd(Integer(claim, 10), 'rb'))
    end

    def self.private_pipes(names)
      match = /\A(\d+),(\d+)\z/.match(names)
      raise ArgumentError, "SNAKEPIT_FDS is 'in,out', two numbers, not #{names.inspect}" unless match

      [IO.for_fd(match[1].to_i, 'rb'), IO.for_fd(match[2].to_i, 'wb')]
    end

    # Without descriptors of their own the frames are moved away from 0 and 1.
    def self.standard_streams
      streams = [STDIN.dup, STDOUT.dup].each(&:binmode)
      STDIN.reopen(File::NULL, 'r')
      begin
        STDOUT.reopen(STDERR)
      rescue SystemCallError, IOError
        STDOUT.reopen(File::NULL, 'w')
      end
      streams
    end
    private_class_method :new, :private_pipes, :standard_streams

    def initialize(input, output, claims)
      @input = input
      @output = output
      @claims = claims
      all.each { |io| io.close_on_exec = true }
      output.sync = true
      @pid = Process.pid
      @max_frame = DEFAULT_MAX_FRAME
      @buffer = String.new
      @at = 0
      # INVARIANT: whole frames that wait to be written together; none while this process waits for the pipe, and
      # while a handler runs only those of its own batch.
      @held = String.new
      # LOCK: guards one whole message on the output (log messages come from any thread).
      @lock = Mutex.new
    end

    def claims?
      !@claims.nil?
    end

    # Returns the next payload, or nil at the end of the stream.
    def read_frame
      size = read_length or return
      payload = @buffer.byteslice(@at, size)
      missing = size - payload.bytesize
      @at += payload.bytesize
      if missing.positive?
        flush
        payload << @input.read(missing).to_s
        read = payload.bytesize
        raise FramingError, "the request stream ended after #{read} of a frame's #{size} bytes" if read < size
      end
      payload
    end

    # Returns +size+ raw bytes from the frames that follow, all of which are full but the last.
    def read_raw(size)
      data = nil
      until data.to_s.bytesize == size
        due = [@max_frame, size - data.to_s.bytesize].min
        frame = read_frame
        unless frame&.bytesize == due
          got = frame ? "a frame of #{frame.bytesize}" : 'the end of the stream'
          raise FramingError, "attachment: a frame of #{due} bytes was due, got #{got}"
        end
        data = data ? data << frame : frame
      end
      data || String.new
    end

    # Writes payloads as one frame each, with no other frame in between, if the block (if any) still says so then.
    def write_frames(*payloads)
      parts = payloads.flat_map { |payload| [[payload.bytesize].pack('N'), payload] }
      write(*parts) { !block_given? || yield }
    end

    # Keeps one frame, to write it with those that follow, at the latest at the next flush.
    def hold(payload)
      @held << [payload.bytesize].pack('N') << payload.b
      flush if @held.bytesize > CHUNK_BYTES || in_child?
    end

    def flush
      return if @held.empty?

      held = @held
      @held = String.new
      write(held) { true }
    end

    # Takes the byte that stands for one request sent ahead: false when the host has taken it back.
    def claim
      raise Refused.new('internal', 'ProtocolError', 'claim: this worker has no SNAKEPIT_CLAIM_FD') unless @claims

      @claims.read_nonblock(1, exception: false).is_a?(String)
    end

    def in_child?
      Process.pid != @pid
    end

    # After a fork in a handler: the stream belongs to the parent alone.
    def close_in_child
      all.each(&:close)
    end

    private

    def all
      [@input, @output, @claims].compact
    end

    def read_length
      while @buffer.bytesize < @at + 4
        flush
        left = @buffer.byteslice(@at..-1)
        begin
          more = @input.readpartial(CHUNK_BYTES)
        rescue EOFError
          return if left.empty?

          raise FramingError, "the request stream ended inside a length; bytes seen: #{left.inspect}"
        end
        @buffer = left.empty? ? more : left << more
        @at = 0
      end
      size = @buffer.byteslice(@at, 4).unpack1('N')
      unless size.between?(1, @max_frame)
        seen = @buffer.byteslice(@at, 80).inspect
        raise FramingError, "length #{size} is not in 1..#{@max_frame}; bytes seen: #{seen}"
      end

      @at += 4
      size
    end

    # Writes completely; a host that is gone ends this process.
    def write(*parts)
      if in_child?
        Snakepit.complain('a forked child came back from its handler; end it with exit!')
        exit!(2)
      end
      @lock.synchronize { yield && @output.write(*parts) }
    rescue Errno::EPIPE
      exit!(0)
    rescue SystemCallError => e
      Snakepit.complain("cannot write a reply: #{e.message}")
      exit!(2)
    end
  end

  # Ruby >= 3.1 calls this for each fork.
  module CloseInChild
    def _fork
      super.tap { |pid| Snakepit.runner&.stream&.close_in_child if pid.zero? }
    end
  end

  # -------------------------------------------------------------------------------------------------- JSON

  # Strict JSON: what the json library lets pass is refused around it.
  module Codec
    PARSE = { max_nesting: MAX_MESSAGE_DEPTH, allow_duplicate_key: true }.freeze
    GENERATE = { max_nesting: 0 }.freeze # is checked before
    ESCAPED = %r{["\\/bfnrt]|u(?:00\h\h|[\da-ce-fA-CE-F]\h{3}|[dD][0-7]\h\h|[dD][89abAB]\h\h\\u[dD][c-fC-F]\h\h)}n.freeze
    ESCAPE = /\\#{ESCAPED}/n.freeze
    # A backslash that begins no ESCAPE, and is no second half of one.  Finding none takes a tenth of the time that
    # removing all ESCAPEs does; the frequent ones are passed over first, and a low surrogate may follow a high one.
    SUSPECT = %r{\\(?!["/bfnrt]|\\(?!\\))(?<!\\\\)(?:\\\\)*+(?!#{ESCAPED}|(?<=[^\\]\\u[dD][89abAB]\h\h\\)u[dD][c-fC-F]\h\h)}n.freeze
    STRING = /"[^"\\]*+(?:\\.[^"\\]*+)*+"/mn.freeze
    TEXT = [Encoding::UTF_8, Encoding::US_ASCII].freeze

    module_function

    # Returns the JSON object of a payload.
    def parse(payload)
      text = payload.force_encoding(Encoding::UTF_8)
      raise BadFrame, 'not UTF-8' unless text.valid_encoding?
      raise BadFrame, 'not an object' unless text.start_with?('{')

      message = JSON.parse(text, PARSE)
      bytes = text.b # shares the memory, and is searched several times as fast
      check_text(bytes) if bytes.include?('\\') || bytes.include?('//') || bytes.include?('/*')
      # Only a long exponent or a long number can be above a double's range.
      check_range(message) if bytes.match?(/[eE]\+?\d{3}/n) || bytes.match?(/\d{200}[.eE]/n)
      message
    rescue JSON::ParserError => e
      raise BadFrame, e.message.byteslice(0, 200).scrub('')
    end

    # The library takes unknown escapes, makes characters of lone surrogates, and skips comments.
    def check_text(bytes)
      if bytes.match?(SUSPECT) && bytes.gsub(ESCAPE, '').include?('\\')
        raise BadFrame, 'an escape that is not JSON, or a lone surrogate'
      end
      return unless bytes.include?('//') || bytes.include?('/*')

      raise BadFrame, 'a comment is not JSON' if bytes.gsub(STRING, '').include?('/')
    end

    def check_range(value)
      case value
      when Float then raise BadFrame, 'a number is out of range' unless value.finite?
      when Array then value.each { |item| check_range(item) }
      when Hash then value.each_value { |item| check_range(item) }
      end
    end

    # Returns a value as JSON text.
    #
    # +root+ says where it stands in the message; +attachments+ receives [pointer, bytes], nil where bytes cannot
    # travel.  Raises Refused with the path of the first value that cannot be sent.
    def encode(value, root, attachments)
      value = convert(value, root, attachments, {}.compare_by_identity) unless plain?(value, MAX_DEPTH)
      JSON.generate(value, GENERATE)
    end

    # Says whether JSON carries a value as it is.
    def plain?(value, depth)
      case value
      when nil, true, false, Integer then true
      when String then value.instance_of?(String) && text?(value)
      when Float then value.finite?
      when Array then value.instance_of?(Array) && depth.positive? && plain_array?(value, depth - 1)
      when Hash then value.instance_of?(Hash) && depth.positive? && plain_hash?(value, depth - 1)
      else false
      end
    end

    def plain_array?(array, depth)
      array.all?(Integer) || array.all? { |item| plain?(item, depth) }
    end

    # All keys are strings, or all are symbols: a mixture may hold the same text twice.
    def plain_hash?(hash, depth)
      kind = nil
      hash.all? do |key, item|
        kind ||= key.instance_of?(Symbol) ? Symbol : String
        key.instance_of?(kind) && (kind == Symbol ? TEXT.include?(key.encoding) : text?(key)) && plain?(item, depth)
      end
    end

    def text?(string)
      TEXT.include?(string.encoding) && string.valid_encoding?
    end

    # Copies a value with exact types and nil for each bytes value; refuses the first that has no place.
    def convert(value, path, attachments, above)
      case value
      when nil, true, false, Integer then value
      when Float then value.finite? ? value : refuse(path, "#{value} is not JSON")
      when Symbol then utf8(value.to_s, path)
      when String then value.encoding == Encoding::BINARY ? detach(value, path, attachments) : utf8(value, path)
      when Array, Hash then convert_nested(value, path, attachments, above)
      else
        hint = value.respond_to?(:to_h) || value.respond_to?(:each) ? '; convert it to a Hash or an Array' : ''
        refuse(path, "#{Snakepit.class_name(value.class)} is not a JSON type#{hint}")
      end
    end

    def convert_nested(value, path, attachments, above)
      refuse(path, 'a cycle: the value contains itself') if above.key?(value)
      refuse(path, "nested deeper than #{MAX_DEPTH} levels") if above.size >= MAX_DEPTH
      above[value] = true
      walk = value.is_a?(Hash) ? :convert_hash : :convert_array
      send(walk, value, path, attachments, above).tap { above.delete(value) }
    end

    def convert_array(array, path, attachments, above)
      array.each_with_index.map { |item, index| convert(item, "#{path}/#{index}", attachments, above) }
    end

    def convert_hash(hash, path, attachments, above)
      hash.each_with_object({}) do |(key, item), copy|
        unless key.is_a?(String) || key.is_a?(Symbol)
          refuse(path, "key #{Snakepit.cap(key.inspect)[0, 80]} is a #{key.class}; JSON keys are String or Symbol")
        end
        name = utf8(key.to_s, path)
        refuse(path, "key #{name.inspect} is there twice, as String and as Symbol") if copy.key?(name)
        copy[name] = convert(item, "#{path}/#{name.gsub('~', '~0').gsub('/', '~1')}", attachments, above)
      end
    end

    def detach(bytes, path, attachments)
      refuse(path, 'a binary String cannot travel: the host takes no attachments') unless attachments
      attachments << ["/#{path}", bytes]
      nil
    end

    def utf8(string, path)
      refuse(path, flaw(string)) unless string.valid_encoding?
      String.new(string.encode(Encoding::UTF_8))
    rescue EncodingError
      refuse(path, "text in #{string.encoding} has no form in UTF-8; a String of bytes must be in BINARY")
    end

    def flaw(string)
      index = string.each_char.find_index { |char| !char.valid_encoding? }
      bytes = string[index..-1].b
      surrogate = bytes.match?(/\A\xed[\xa0-\xbf][\x80-\xbf]/n)
      return "text with a lone surrogate at index #{index} is not UTF-8" if surrogate

      byte = format('0x%02x', bytes.getbyte(0))
      "text with the byte #{byte} at index #{index} is not #{string.encoding}; bytes must be in BINARY"
    end

    def refuse(path, reason)
      shown = path.length <= 200 ? path : "#{path[0, 120]}...#{path[-60..-1]}"
      raise Refused.new('encode_error', 'EncodeError', "#{shown}: #{reason}")
    end
  end

  # The name of a class as error replies and messages show it.
  def class_name(klass)
    klass = klass.superclass until klass.name
    klass.name.split('::').last
  end

  # ---------------------------------------------------------------------------------------------- handlers

  # One command: what to call, and the parameters that it takes.
  class Handler
    FORMS = { req: '%s', opt: '%s = ...', rest: '*%s', keyreq: '%s:', key: '%s: ...', keyrest: '**%s' }.freeze

    attr_reader :doc, :place

    # Gives a block the strict parameters, and the +return+, of a method, with the +self+ it was written with.
    def self.method_from(block)
      return block if block.lambda?

      receiver = block.binding.receiver
      Module.new { define_method(:handler, &block) }.instance_method(:handler).bind(receiver)
    end

    def initialize(name, callable, doc)
      @name = name
      @callable = callable
      @doc = doc
      @place = callable.source_location&.join(':')
      @parameters = callable.parameters
      @required = names(:keyreq)
      @keywords = names(:keyreq, :key)
      @any_keyword = !names(:keyrest).empty?
      @positionals = names(:req, :opt)
      @least = names(:req).size
      @most = names(:rest).empty? ? @positionals.size : Float::INFINITY
    end

    def params
      @parameters.select { |kind, name| name && %i[req opt keyreq key].include?(kind) }.map(&:last)
    end

    # Binds and calls: an object is keywords, an array positionals, null nothing, a scalar one positional.
    def call(args)
      case args
      when Hash
        keywords = args.transform_keys(&:to_sym)
        check([], keywords)
        keywords.empty? ? @callable.call : @callable.call(**keywords)
      when Array
        check(args, {})
        @callable.call(*args)
      else
        check(values = args.nil? ? [] : [args], {})
        @callable.call(*values)
      end
    end

    private

    def names(*kinds)
      @parameters.select { |kind, _| kinds.include?(kind) }.map { |_, name| name || :_ }
    end

    def check(values, keywords)
      return if values.size.between?(@least, @most) &&
                @required.all? { |name| keywords.key?(name) } &&
                (@any_keyword || keywords.all? { |name, _| @keywords.include?(name) })

      reasons = mismatch(values, keywords).join('; ')
      raise Snakepit.bad_args(Snakepit.cap("#{@name}: #{reasons}; signature: #{@name}(#{signature})"))
    end

    def signature
      shown = @parameters.select { |kind, _| FORMS.key?(kind) }
      shown.map { |kind, name| format(FORMS[kind], name || :_) }.join(', ')
    end

    def mismatch(values, keywords)
      missing = names(:req).drop(values.size) + (@required - keywords.keys)
      unexpected = @any_keyword ? [] : keywords.keys - @keywords
      misplaced = unexpected & @positionals
      parts = []
      parts << "missing #{quote(missing)}" unless missing.empty?
      parts << "unexpected #{quote(unexpected.sort)}" unless unexpected.empty?
      parts << "takes at most #{@most} positional arguments, got #{values.size}" if values.size > @most
      unless misplaced.empty?
        parts << "#{quote(misplaced)} without a colon is positional: send an array, or declare keywords"
      end
      parts
    end

    def quote(names)
      names.map { |name| "'#{name}'" }.join(', ')
    end
  end

  # A command of the bridge itself: takes args as they came.
  Builtin = Struct.new(:callable, :params, :doc) do
    def call(args)
      callable.call(args)
    end
  end

  # What handler files call; the top level has these methods, everybody else says <tt>Snakepit.command</tt>.
  module Interface
    # Makes a block, a method or a lambda a command:
    #
    #     command("render", "Markdown to HTML.") { |markdown:, width: 80| ... }
    #     command "render", doc: "..." do |markdown:| ... end
    #     command("render", method(:render))
    #     command def render(markdown:, width: 80) ... end
    def command(name, *rest, doc: nil, &block)
      callable = block ? Handler.method_from(block) : rest.find { |item| item.respond_to?(:call) }
      callable ||= method(name) if name.is_a?(Symbol)
      doc ||= rest.find { |item| item.is_a?(String) }
      raise ArgumentError, "command #{name.inspect}: a block is missing" unless callable

      Snakepit.runner.add(name, callable, doc)
      name
    end

    # Runs a block before the worker is ready; it receives the adapter's +start_args+.
    def on_start(callable = nil, &block)
      callable = block ? Handler.method_from(block) : callable
      raise ArgumentError, 'on_start: a block is missing' unless callable.respond_to?(:call)

      Snakepit.runner.starters << Handler.new('on_start', callable, nil)
      nil
    end

    # Returns the Context of the running request, in its threads too; outside of one, a Context without a session.
    def context
      Snakepit.runner.context
    end
  end

  # What a handler may know about its request and keep for later ones.
  class Context
    attr_reader :session_id, :worker_id, :worker_state

    def initialize(runner, request)
      @runner = runner
      @request = request
      @session_id = request&.session
      @worker_id = runner.worker_id
      @worker_state = runner.worker_state
    end

    # A Hash that lives as long as the session on this worker; without a session, as long as the request.
    def state
      @state ||= @session_id ? @runner.sessions[@session_id] ||= {} : {}
    end

    # Seconds left for this request, >= 0, or nil without a limit.
    def deadline_s
      deadline = @request&.deadline
      deadline && [0.0, deadline - Snakepit.monotonic].max
    end

    # Sends a log line to the host; from any thread.  Fields that JSON cannot carry become their inspect.
    def log(message, level = 'info', **fields)
      @runner.log(@request, level, message, fields)
      nil
    end
  end

  # -------------------------------------------------------------------------------------------- the runner

  # The threads of one item: a new thread joins the group of the one that starts it.
  Scope = Class.new(ThreadGroup) { attr_accessor :request, :context }

  # INVARIANT: deadline is in monotonic seconds; problem is what is answered in place of running, or nil.
  Request = Struct.new(:id, :handler, :session, :deadline, :claim, :problem)

  # Reads requests, runs them in order, writes each reply as soon as it exists.
  #
  # THREAD: the main thread, except +log+ and +context+ (any).
  class Runner
    OPERANDS = %w[operation a b].freeze
    OPERATIONS = {
      'add' => ->(a, b) { a + b },
      'divide' => ->(a, b) { a.fdiv(b) },
      'multiply' => ->(a, b) { a * b },
      'subtract' => ->(a, b) { a - b }
    }.freeze

    attr_reader :stream, :starters, :worker_id, :worker_state, :sessions

    def initialize(stream, handlers)
      @stream = stream
      @handlers = handlers
      @starters = []
      @worker_id = 'unknown'
      @worker_state = {}
      @sessions = {}
      @began = Time.now
      @count = 0
      @level = 0
      @agreed = []
      @attachments = @log_agreed = false
      # INVARIANT: the Request for which user code runs, and the Scope of its item, or nil.
      @current = @scope = nil
      @commands = {
        'ping' => Builtin.new(method(:ping), [], 'Tell that the worker is well.'),
        'echo' => Builtin.new(method(:echo), [], 'Return the args as they came.'),
        'compute' => Builtin.new(method(:compute), OPERANDS, 'Add, subtract, multiply or divide two numbers.'),
        'info' => Builtin.new(method(:info), [], 'Describe the bridge and its system.')
      }
    end

    def add(name, callable, doc)
      name = name.to_s if name.is_a?(Symbol)
      unless name.is_a?(String) && !name.empty?
        raise ArgumentError, "a command's name is a String that is not empty, not #{name.inspect}"
      end
      raise ArgumentError, "command 'ping' belongs to the bridge" if name == 'ping'

      old = @commands[name]
      handler = Handler.new(name, callable, doc)
      if old.is_a?(Handler)
        places = [old.place, handler.place].compact.join(' and ')
        raise ArgumentError, "command '#{name}' is registered twice#{places.empty? ? '' : ": #{places}"}"
      end

      @commands[name] = handler
    end

    # THREAD: any.  What a thread that outlives its request does may be for another one, if it belongs to a pool.
    def context
      scope = Thread.current == Thread.main ? @scope : Thread.current.group
      return Context.new(self, nil) unless scope.is_a?(Scope)
      return scope.context ||= Context.new(self, scope.request) if scope.equal?(@scope)

      raise ThreadError, 'the request that started this thread has ended; give the thread what `context` returns there'
    end

    # Serves until the request stream ends; returns the exit status.
    def run
      first = true
      while (payload = @stream.read_frame)
        begin
          message = Codec.parse(payload)
          next notice(message) if message.key?('type') && !message.key?('command')

          id = message['id']
          raise BadFrame, 'no integer id' unless id.is_a?(Integer)
        rescue BadFrame => e
          bad_frame(e.message, payload)
          next
        end
        if first
          first = false
          outcome = start(id, message)
          return 1 if outcome == :failed
          next if outcome == :answered
        end
        serve(id, message)
      end
      0
    rescue FramingError => e
      bad_frame(e.message, nil)
      2
    rescue SystemCallError => e
      Snakepit.complain("cannot read requests: #{e.message}")
      2
    end

    # THREAD: any.
    def log(request, level, message, fields)
      # A time-out of user code must not cut a frame.
      Thread.handle_interrupt(Exception => :never) do
        unless @log_agreed && request && !@stream.in_child? && send_log(request, level, message, fields)
          shown = fields.map { |name, value| " #{name}=#{value.inspect}" }.join
          Snakepit.complain(Snakepit.cap("[#{level}] #{message}#{shown}").gsub("\n", '\n'))
        end
      end
    end

    private

    # Requests

    def notice(message)
      @sessions.delete(message['session']) if message['type'] == 'session_end'
    end

    def serve(id, message)
      message = message.slice('command', 'args') if @level.zero?
      request = Request.new(id)
      problem = message.key?('attachments') ? take_attachments(message) : nil
      begin
        admit(request, message)
      rescue Refused => e
        problem ||= e
      end
      request.problem = problem
      batch = message['batch']
      if batch.is_a?(Array) && !batch.empty?
        serve_batch(request, batch)
      elsif !request.claim || claim(request, nil)
        @stream.flush
        answer(request, nil, message.fetch('args', {}))
      end
    end

    # Fills a request with what the message says; refuses what cannot be served.
    def admit(request, message)
      id = request.id
      request.claim = message['claim'] == true
      request.deadline = deadline_of(id, message['deadline_ms'])
      request.session = message['session']
      unless request.session.nil? || request.session.is_a?(String)
        raise Snakepit.bad_args("request #{id}: 'session' must be a string")
      end

      batch = message.fetch('batch', [nil])
      raise Snakepit.bad_args("request #{id}: 'batch' must be an array") unless batch.is_a?(Array)
      raise Snakepit.bad_args("request #{id}: 'batch' must not be empty") if batch.empty?

      name = message['command']
      raise Snakepit.bad_args("request #{id}: 'command' must be a string") unless name.is_a?(String)

      request.handler = @commands[name] or raise unknown(name)
    end

    def unknown(name)
      available = @commands.keys.sort.join(', ')
      Refused.new('unknown_command', 'UnknownCommand', "Unknown command: '#{name}'. Available: #{available}")
    end

    def deadline_of(id, deadline_ms)
      case deadline_ms
      when nil then nil
      when Integer, Float then Snakepit.monotonic + deadline_ms / 1000.0
      else raise Snakepit.bad_args("request #{id}: 'deadline_ms' must be a number")
      end
    end

    # Serves one item after the other; replies that come within BATCH_WAIT_S are written together.
    def serve_batch(request, batch)
      since = 0.0
      batch.each_with_index do |args, index|
        now = Snakepit.monotonic
        if now - since > BATCH_WAIT_S
          @stream.flush
          since = now
        end
        answer(request, index, args) if !request.claim || claim(request, index)
      end
      @stream.flush
    end

    # Takes the token of one item; returns false, the item answered, when it is not to be served.
    def claim(request, index)
      return true if @stream.claim

      @stream.hold(%({"id":#{request.id},"type":"recalled"#{index && %(,"index":#{index})}}))
      false
    rescue Refused, SystemCallError => e
      reply_error(request.id, index, request.problem || e)
      false
    end

    # Runs one item and replies.
    def answer(request, index, args)
      @count += 1
      raise request.problem if request.problem

      enter(request)
      result = request.handler.call(args)
      result = value_of(result) if Thread === result
      body = Codec.encode(result, 'result', attachments = @attachments ? [] : nil)
    rescue Exception => e # also what StandardError leaves out: the worker lives
      @current = @scope = nil
      reply_error(request.id, index, e)
    else
      @current = @scope = nil
      reply(request.id, index, body, attachments)
    end

    def enter(request)
      @current = request
      @scope = Scope.new
      @scope.request = request
      @scope.add(Thread.current) unless Thread.current.group.enclosed? # by user code, which gets no context in threads
    end

    # A handler may return a Thread: its value is the result.
    def value_of(thread)
      @stream.flush
      thread.value
    end

    # Reads the raw frames that follow a message and puts them in place; returns a Refused or nil.
    def take_attachments(message)
      entries = message['attachments'] or return
      sizes = Array(entries).map { |entry| entry['len'] if entry.is_a?(Hash) }
      unless entries.is_a?(Array) && sizes.all? { |size| size.is_a?(Integer) && size >= 0 }
        raise FramingError, "attachments without a usable 'len': the frames that follow cannot be counted"
      end

      problem = nil
      entries.each do |entry|
        data = @stream.read_raw(entry['len'])
        begin
          raise ArgumentError, "its kind is not 'bytes'" unless entry['kind'] == 'bytes'

          place(message, entry['path'], data)
        rescue ArgumentError => e
          problem ||= Snakepit.bad_args("attachment #{Snakepit.cap(entry['path'].inspect)[0, 200]}: #{e.message}")
        end
      end
      problem
    end

    # Sets the value at an RFC 6901 pointer.
    def place(message, path, data)
      raise ArgumentError, 'not a JSON pointer' unless path.is_a?(String) && path.match?(%r{\A/(?:[^~]|~[01])*\z}m)

      *parts, last = path.split('/', -1).drop(1).map { |part| part.gsub('~1', '/').gsub('~0', '~') }
      target = parts.reduce(message) { |at, part| at.fetch(step(at, part)) }
      raise ArgumentError, 'the place does not hold null' unless target.fetch(step(target, last)).nil?

      target[step(target, last)] = data
    rescue KeyError, IndexError
      raise ArgumentError, 'it leads nowhere'
    end

    def step(container, part)
      return part if container.is_a?(Hash)
      raise ArgumentError, 'it leads nowhere' unless container.is_a?(Array) && part.match?(/\A(?:0|[1-9]\d{0,15})\z/)

      part.to_i
    end

    # Start

    # Agrees on a protocol, loads the handlers, runs on_start.  Returns :failed, :answered, or :due when the request
    # is still to be served.
    def start(id, message)
      args = message['args']
      is_ping = message['command'] == 'ping' && args.is_a?(Hash)
      watch_eof
      begin
        protocol = is_ping ? negotiate(args['protocol']) : nil
        @worker_id = args['worker_id'] if is_ping && args.key?('worker_id')
        @current = Request.new(id)
        load_handlers(is_ping ? args['start_args'] : nil)
      rescue Exception => e # a SyntaxError or an exit in the handler file, too
        @current = nil
        reply_error(id, nil, e, place_of(e))
        return :failed
      end
      @current = nil
      return :due unless protocol

      @count += 1
      protocol['commands'] = @commands.sort.to_h.transform_values do |command|
        { 'params' => command.params, 'doc' => Snakepit.cap(command.doc) }
      end
      reply(id, nil, Codec.encode(ping(args).merge('protocol' => protocol), 'result', nil), nil)
      @log_agreed = @agreed.include?('log')
      :answered
    end

    def negotiate(offer)
      return unless offer.is_a?(Hash) && Array(offer['versions']).include?(1)

      @level = 1
      max_frame = offer.fetch('max_frame', DEFAULT_MAX_FRAME)
      unless max_frame.is_a?(Integer) && max_frame.positive?
        raise Snakepit.bad_args('ping: protocol.max_frame must be an integer >= 1')
      end

      @stream.max_frame = [max_frame, LARGEST_MAX_FRAME].min
      @agreed = CAPABILITIES & Array(offer['capabilities'])
      @agreed.delete('claim') unless @stream.claims?
      @attachments = @agreed.include?('attachments')
      { 'version' => 1, 'max_frame' => @stream.max_frame, 'capabilities' => @agreed, 'language' => 'ruby',
        'runtime' => RUBY_VERSION, 'bridge' => BRIDGE_VERSION, 'pid' => Process.pid }
    end

    def load_handlers(start_args)
      if @handlers
        path = File.expand_path(@handlers)
        raise LoadError, "no handler file at #{path}" unless File.file?(path)

        File.open(path) {} # raises the system's reason, which `load` does not tell
        load(path)
      end
      if @starters.empty? && !start_args.nil?
        raise Snakepit.bad_args('start_args were given, but the handlers have no on_start block')
      end

      @starters.each do |starter|
        result = starter.call(start_args)
        result.value if result.is_a?(Thread)
      end
    end

    # Returns the file and line of the handlers that a failed start comes from; nil if the message names them.
    def place_of(error)
      return if @handlers.nil? || error.is_a?(Refused)

      path = File.expand_path(@handlers)
      Array(error.backtrace).join("\n")[/^#{Regexp.escape(path)}:\d+/] unless message_of(error).include?("#{path}:")
    end

    # Waits for the host to close the request pipe, and ends a worker that is too busy to see it.
    #
    # THREAD: its own.  It asks for no data, so only the hang-up wakes it: requests cost nothing.  Ruby 2.7 cannot
    # ask so.
    def watch_eof
      return unless defined?(IO::PRIORITY)

      Thread.new do
        @stream.input.wait(IO::PRIORITY, nil)
        # RACE: 1. the host closes both pipes, or 2. it closes the requests and still reads replies.  In the first
        # case nobody waits for anything; in the second a reply on its way out gets a moment.
        @stream.output.wait(IO::PRIORITY, EOF_GRACE_S)
        # An idle main thread sees the end as well, and runs at_exit blocks of user code: in the host's 2 s of grace.
        sleep(2 - EOF_GRACE_S) unless @current
        exit!(0)
      end
    end

    # Replies

    def reply(id, index, body, attachments)
      text = +%({"id":#{id}#{index && %(,"index":#{index})},"success":true,"result":)
      text << body
      if attachments && !attachments.empty?
        entries = attachments.map { |path, data| { 'path' => path, 'kind' => 'bytes', 'len' => data.bytesize } }
        text << ',"attachments":' << JSON.generate(entries)
      end
      text << tail
      if text.bytesize > @stream.max_frame
        reason = "the encoded reply has #{text.bytesize} bytes; the limit is #{@stream.max_frame} (max_frame)"
        reply_error(id, index, Refused.new('too_large', 'ResultTooLarge', reason))
      elsif attachments && !attachments.empty?
        @stream.flush
        @stream.write_frames(text, *attachments.flat_map { |_, data| cut(data) })
      else
        put(text, index)
      end
    end

    def put(text, index)
      index ? @stream.hold(text) : @stream.write_frames(text)
    end

    def tail
      @level.zero? ? %(,"timestamp":"#{Time.now.utc.strftime('%Y-%m-%dT%H:%M:%S.%LZ')}"}) : '}'
    end

    def cut(data)
      (0...data.bytesize).step(@stream.max_frame).map { |from| data.byteslice(from, @stream.max_frame) }
    end

    # +place+ follows the first line of the message where that alone has to say what is wrong.
    def reply_error(id, index, error, place = nil)
      @stream.flush unless index
      report = describe(error)
      report['message'] = Snakepit.cap(report['message'].sub(/$/) { " (#{place})" }) if place
      text = error_text(id, index, report)
      if text.bytesize > @stream.max_frame
        message = report['message'].byteslice(0, [16, @stream.max_frame / 8].max).scrub('')
        report = report.slice('code', 'type', 'language').merge('message' => message, 'traceback' => nil)
        text = error_text(id, index, report)
      end
      put(text, index)
    end

    def error_text(id, index, report)
      error = @agreed.include?('errors') ? report : report['message']
      head = %({"id":#{id.nil? ? 'null' : id}#{index && %(,"index":#{index})},"success":false,"error":)
      "#{head}#{JSON.generate(error, Codec::GENERATE)}#{tail}"
    end

    # Returns the +error+ object of a reply, see "Errors" in PROTOCOL.md.
    def describe(error)
      refused = error.instance_of?(Refused)
      report = {
        'code' => refused ? error.code : 'handler_error',
        'type' => refused ? error.type : Snakepit.class_name(error.class),
        'message' => message_of(error),
        'traceback' => refused ? nil : traceback_of(error),
        'language' => 'ruby'
      }
      return report if refused

      data = data_of(error)
      report['data'] = data unless data.nil?
      cause = error.cause
      report['cause'] = { 'type' => Snakepit.class_name(cause.class), 'message' => message_of(cause) } if cause
      report
    end

    def message_of(error)
      message = Snakepit.cap(error.message)
      message.empty? ? Snakepit.class_name(error.class) : message
    rescue Exception => e # a message that raises is no second error
      "<message of #{Snakepit.class_name(error.class)} raised #{Snakepit.class_name(e.class)}>"
    end

    # Without the bridge's own lines.
    def traceback_of(error)
      text = Snakepit.cap(error.full_message(highlight: false, order: :top))
      text.gsub(/^\s*from #{Regexp.escape(__FILE__)}:.*(?:\n|\z)/, '')
    rescue Exception => e
      "#{Snakepit.class_name(error.class)}\n<its traceback cannot be shown: #{Snakepit.class_name(e.class)}>\n"
    end

    def data_of(error)
      data = error.respond_to?(:data) ? error.data : nil
      Codec.convert(data, 'data', nil, {}.compare_by_identity)
    rescue Exception # what is no JSON is not sent: the field is optional
      nil
    end

    # Answers what is no request, with its id if one can be seen, and says so on stderr.
    def bad_frame(reason, payload)
      seen = payload ? payload.b : ''
      id = seen[0, 4096][/[{,]\s*"id"\s*:\s*(\d{1,16})\s*[,}]/n, 1]&.to_i
      message = Snakepit.cap("bad frame: #{reason}#{payload && "; bytes seen: #{seen[0, 80].inspect}"}")
      Snakepit.complain(message.gsub("\n", '\n'))
      reply_error(id, nil, Refused.new('internal', 'BadFrame', message))
    end

    # Returns whether the message was sent: not after the reply of its request, and only if it fits.
    def send_log(request, level, message, fields)
      level, message = [level, message].map { |text| Snakepit.cap(text) }
      entry = { 'type' => 'log', 'id' => request.id, 'level' => level, 'message' => message }
      begin
        text = Codec.encode(entry.merge('fields' => fields), 'log', nil)
      rescue Refused
        shown = fields.map { |name, value| [Snakepit.cap(name), Snakepit.cap(value.inspect)] }.to_h
        text = Codec.encode(entry.merge('fields' => shown), 'log', nil)
      end
      # RACE: 1. a thread of the handler logs  2. the handler returns  3. its reply is written.  Asked within the
      # stream's lock, the message is before the reply or not sent.
      text.bytesize <= @stream.max_frame && @stream.write_frames(text) { @current.equal?(request) }
    end

    # Built-in commands

    def ping(args)
      known = args.is_a?(Hash) ? args : {}
      {
        'status' => 'ok',
        'bridge_type' => 'generic_ruby',
        'uptime' => Time.now - @began,
        'requests_handled' => @count,
        'timestamp' => Time.now.to_f,
        'ruby_version' => RUBY_VERSION,
        'platform' => RUBY_PLATFORM,
        'worker_id' => known.fetch('worker_id', @worker_id),
        'echo' => args.is_a?(Hash) ? args.reject { |key, _| HANDSHAKE.include?(key) } : args
      }
    end

    def echo(args)
      { 'status' => 'ok', 'echoed' => args, 'timestamp' => Time.now.to_f }
    end

    def compute(args)
      raise Snakepit.bad_args('compute: args must be an object') unless args.is_a?(Hash)

      operation, a, b = OPERANDS.map do |name|
        args.fetch(name) { raise Snakepit.bad_args("compute: missing field '#{name}'") }
      end
      apply = OPERATIONS[operation] or raise unknown_operation(operation)
      inputs = { 'a' => a, 'b' => b }
      inputs.each do |name, value|
        number = value.is_a?(Integer) || value.is_a?(Float)
        raise Snakepit.bad_args("compute: field '#{name}' must be a number") unless number
      end
      raise Snakepit.bad_args('compute: division by zero') if operation == 'divide' && b.zero?

      result = apply.call(a, b)
      raise Snakepit.bad_args('compute: result is not a finite number') unless result.to_f.finite?

      timestamp = Time.now.to_f
      { 'status' => 'ok', 'operation' => operation, 'inputs' => inputs, 'result' => result, 'timestamp' => timestamp }
    end

    def unknown_operation(operation)
      shown = operation.is_a?(String) ? operation : Codec.encode(operation, 'operation', [])
      Snakepit.bad_args("compute: unknown operation '#{shown[0, 200]}'; one of #{OPERATIONS.keys.join(', ')}")
    end

    def info(_args)
      {
        'status' => 'ok',
        'bridge_info' => {
          'name' => 'Snakepit Ruby Bridge',
          'version' => BRIDGE_VERSION,
          'supported_commands' => @commands.keys.sort,
          'uptime' => Time.now - @began,
          'total_requests' => @count
        },
        'system_info' => { 'ruby_version' => RUBY_VERSION, 'ruby_engine' => RUBY_ENGINE, 'platform' => RUBY_PLATFORM },
        'timestamp' => Time.now.to_f
      }
    end
  end

  # ------------------------------------------------------------------------------------------------- start

  class << self
    attr_reader :runner

    # Runs the worker; returns its exit status: 0 end of requests, 1 failed start, 2 bad option or frame.
    def main(argv)
      begin
        handlers = parse_options(argv)
        stream = Stream.open
      rescue ArgumentError, SystemCallError => e
        complain("#{e.message}\n#{USAGE}")
        return 2
      end
      Signal.trap('INT', 'IGNORE')
      # Ruby's own action is an exception in the main thread, which a busy one does not see and a handler may rescue.
      Signal.trap('TERM', 'SYSTEM_DEFAULT')
      [STDOUT, STDERR].each { |io| io.sync = true }
      Process.singleton_class.prepend(CloseInChild)
      @runner = Runner.new(stream, handlers)
      @runner.run
    end

    private

    # Returns the handler file or nil, and leaves argv empty: Kernel#gets would read the files it names.
    def parse_options(argv)
      handlers = nil
      while (argument = argv.shift)
        option, value = argument.split('=', 2)
        raise ArgumentError, "unknown option #{argument.inspect}" unless %w[--handlers --mode].include?(option)

        value ||= argv.shift or raise ArgumentError, "#{option} needs a value"
        handlers = value if option == '--handlers'
      end
      handlers
    end
  end

  extend Interface
end

extend Snakepit::Interface

exit(Snakepit.main(ARGV)) if $PROGRAM_NAME == __FILE__
