command('mirror') { |value:| value }
