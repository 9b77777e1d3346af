use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

my $LINE = qr{
    ^ (?<client> \S+ ) \s \S+ \s \S+ \s \[ [^\]]+ \] \s
    " (?<method> [A-Z]+ ) \s (?<path> [^\s?]+ ) [^"]* " \s
    (?<status> \d{3} ) \s (?<bytes> \d+ | - ) \s (?<seconds> [\d.]+ ) $
}x;

command analyse => sub ($args, $ctx) {
    my %found = (paths => {}, errors => 0, unreadable => 0);
    for my $line (@{ $args->{lines} }) {
        if ($line !~ $LINE) { $found{unreadable}++; next }
        my $path = $found{paths}{ $+{path} } //= { requests => 0, seconds => 0 };
        $path->{requests}++;
        $path->{seconds} += $+{seconds};
        $found{errors}++ if $+{status} >= 500;
    }
    return \%found;
};

1;
