#!/usr/bin/env ruby
# A bridge as an author of Snakepit 0.1.2 would have written it: level 0, nothing of protocol 1.
require 'json'
require 'time'

class Bridge
  def initialize
    @commands = {
      'ping' => method(:ping),
      'process_data' => method(:process_data),
      'generate_report' => method(:generate_report)
    }
  end

  def run
    STDERR.puts 'Ruby bridge started'
    while (header = STDIN.read(4))
      request = JSON.parse(STDIN.read(header.unpack1('N')))
      reply = JSON.generate(answer(request))
      STDOUT.write([reply.bytesize].pack('N'), reply)
      STDOUT.flush
    end
  end

  private

  def answer(request)
    handler = @commands[request['command']]
    raise "Unknown command: #{request['command']}" unless handler

    settle(request, 'success' => true, 'result' => handler.call(request['args'] || {}))
  rescue StandardError => e
    settle(request, 'success' => false, 'error' => e.message)
  end

  def settle(request, outcome)
    { 'id' => request['id'], 'timestamp' => Time.now.iso8601 }.merge(outcome)
  end

  def ping(_args)
    { 'status' => 'ok', 'message' => 'pong' }
  end

  def process_data(args)
    data = args['data'] || ''
    { 'processed' => data.upcase, 'length' => data.length }
  end

  def generate_report(args)
    { 'report' => { 'title' => args['title'] || 'Report', 'generated_at' => Time.now.iso8601, 'data' => args['data'] || {} } }
  end
end

Signal.trap('TERM') { exit(0) }
Signal.trap('INT') { exit(0) }

Bridge.new.run
