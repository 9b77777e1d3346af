require 'csv'
require 'erb'

REPORT = ERB.new(<<~TEXT, trim_mode: '-')
  <%= title %>
  <%- regions.each do |name, rows| -%>
  <%= format('%-8s %10.2f', name, rows.sum { |row| row['units'].to_i * row['price'].to_f }) %>
  <%- end -%>
TEXT

command('report', doc: 'Sum up a CSV of sales by region.') do |csv:, title: 'Sales'|
  regions = CSV.parse(csv, headers: true).group_by { |row| row.fetch('region') }
  REPORT.result_with_hash(title: title, regions: regions)
end
