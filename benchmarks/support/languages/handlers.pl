use strict;
use warnings;

command mirror => sub { $_[0]{value} }, params => ['value'];
