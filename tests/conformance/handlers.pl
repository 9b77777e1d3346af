# The commands that transcripts and misuse tests expect of a Perl bridge; handlers.py has the same.
use v5.26;
use strict;
use warnings;
use utf8;
use feature 'signatures';
no warnings qw(experimental::signatures surrogate);
use POSIX ();
use Time::HiRes ();

package Failure {
    sub new ($class, $message, %more) { bless { message => $message, %more }, $class }
    sub message ($self)               { $self->{message} }
}

@Inner::ISA = 'Failure';

on_start(sub ($args, $ctx) {
    die Failure->new('cannot start') if $args && $args->{fail};
    $ctx->worker_state->{start_args} = $args;
});

command started => sub ($args, $ctx) { $ctx->worker_state->{start_args} };

command identity => sub ($args, $ctx) { $args->{value} }, params => ['value'], doc => 'Return the value.';

command later => sub ($args, $ctx) { $args->{value} };

command fail => sub ($args, $ctx) {
    die Failure->new($args->{message} // 'boom', data => { field => 'name' }, cause => Inner->new('deep down'));
};

command die_with_text => sub ($args, $ctx) { explode($args->{message}) };

sub explode ($message) { die $message }

command count => sub ($args, $ctx) { ++$ctx->state->{count} };

command whoami => sub ($args, $ctx) { +{ session => $ctx->session_id, worker => $ctx->worker_id } };

command deadline => sub ($args, $ctx) { $ctx->deadline_s };

command log_line => sub ($args, $ctx) {
    $ctx->log(@$args{qw(message level fields)});
    'logged';
};

command unencodable => sub ($args, $ctx) {
    my $cycle = {};
    $cycle->{self} = $cycle;
    my $deep = [];
    $deep = [$deep] for 1 .. 300;
    my $infinity = 9**9**9;
    my %values = (
        nan              => $infinity - $infinity,
        infinity         => $infinity,
        'lone surrogate' => "x\x{d800}",
        cycle            => $cycle,
        deep             => $deep,
        object           => bless({}, 'Thing'),
        function         => sub { 1 },
        handle           => \*STDOUT,
        'scalar'         => \1,
    );
    return { a => [$values{ $args->{kind} }] };
};

command text => sub ($args, $ctx) { 'x' x $args->{size} };

command blob => sub ($args, $ctx) { bytes pack 'C*', map { $_ % 256 } 0 .. $args->{size} - 1 };

command nested_blobs => sub ($args, $ctx) {
    +{ 'a/b' => [bytes 'one'], 't~' => { empty => bytes '', two => bytes "\x00\x01" }, n => undef };
};

command reverse => sub ($args, $ctx) { bytes scalar reverse $args->{data} };

command sizes => sub ($args, $ctx) { [map { length } @{ $args->{items} }] };

command print_text => sub ($args, $ctx) {
    say $args->{line};
    'printed';
};

# Write to descriptor 1 as native code would.
command write_fd_1 => sub ($args, $ctx) {
    POSIX::write(1, $args->{line}, length $args->{line});
    'written';
};

command child_reads_stdin => sub ($args, $ctx) { scalar `cat` };

command child_sees => sub ($args, $ctx) {
    [split ' ', `ls -l /proc/self/fd | grep -c pipe: ; env | grep -c '^SNAKEPIT_.*FD'`];
};

command hang => sub ($args, $ctx) {
    $ctx->log('hanging');
    sleep while 1;
};

# Compute for so many milliseconds; with null, wait for ever.
my $stall = sub ($args, $ctx) {
    my $ms = $args->{ms};
    sleep while !defined $ms;
    my $until = Time::HiRes::time() + $ms / 1000;
    1 while Time::HiRes::time() < $until;
    return $ms;
};
command stall       => $stall;
command stall_later => $stall;

command leave_by_next => sub ($args, $ctx) { no warnings 'exiting'; next };

command fork_child => sub ($args, $ctx) {
    my $child = fork // die "fork: $!";
    return 'from the child' if !$child;
    waitpid $child, 0;
    return $? >> 8;
};

# What became of values whose kind Perl keeps in a flag.
command kinds => sub ($args, $ctx) {
    my ($text, $number) = ('5', 5);
    my $sum = $text + $number;
    return [$text, $number, true, false, $args->{yes} ? 'yes' : 'no', $args->{no} ? 'yes' : 'no'];
};

command pid => sub ($args, $ctx) { $$ };
