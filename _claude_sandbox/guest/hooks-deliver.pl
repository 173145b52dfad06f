# Brings the queued events of hook.sh to the host: as the remote command of the forward (lima/socket_forward.py), from
# when the socket is there until stdin ends. $ARGV[0]: the socket; $ARGV[1]: the service's name, for the line
# `ready NAME`. Perl without modules that perl-base lacks.
#
# In order of each queue, batch by batch, each again until the host has answered which is the last that it
# has; what it has is removed. hook.sh wakes us by a fifo; nothing is polled. One at a time: a service whose
# connection died without its knowing is ended by the next one.
use strict;
use warnings;
use Fcntl qw(:flock O_RDWR O_CREAT O_NONBLOCK);
use IO::Socket::UNIX;

use constant {
    BODY => 1 << 20, EVENTS => 500,     # of one batch
    EVENT => 64 << 10, HEAD => 2048,    # of one payload; of a longer one
    SHORT => 0.2, LONG => 10,           # seconds between tries
    ANSWER => 20,                       # seconds for a whole exchange
};
my ($socket, @name) = @ARGV;
my $spool = "$ENV{HOME}/.claude-sandbox/hooks";
my $largest = BODY;
my $pause = SHORT;
umask 077;
$| = 1;
$SIG{PIPE} = 'IGNORE';

for my $directory ("$ENV{HOME}/.claude-sandbox", $spool) { mkdir $directory }
chdir $spool or die "$spool: $!\n";
open my $turn, '+>>', 'deliver.pid' or die "deliver.pid: $!\n";
take_turn();
-p 'wake' or system 'mkfifo', 'wake';
sysopen my $wake, 'wake', O_RDWR | O_NONBLOCK or die "wake: $!\n";
open my $file, '<', '/proc/sys/kernel/random/boot_id' or die "boot_id: $!\n";
my $boot = <$file> =~ s/[^0-9a-f]//gr;
print "@{['ready', @name]}\n";

while (1) {
    1 while sysread $wake, my $bytes, 4096;
    my $more = 0;
    for my $queue (queues()) {
        my $batch = batch($queue) or next;
        $more = 1;
        my $wait = deliver($queue, @$batch);
        wait_for($wait) if $wait;
        last;
    }
    wait_for(undef, $wake) unless $more;
}

# Wait until there is something to read, or `seconds` are over; stdin can only end.
sub wait_for {
    my ($seconds, @handles) = @_;
    my $set = '';
    vec($set, fileno $_, 1) = 1 for \*STDIN, @handles;
    my $found = select $set, undef, undef, $seconds;
    exit 0 if $found > 0 && vec($set, fileno STDIN, 1) && !sysread STDIN, my $bytes, 4096;
}

# The lock is ours, if need be after the end of whoever has it: the host made a new connection.
sub take_turn {
    for my $try (0 .. 60) {
        if (flock $turn, LOCK_EX | LOCK_NB) {
            truncate $turn, 0;
            syswrite $turn, "$$\n";
            return;
        }
        seek $turn, 0, 0;
        my $holder = <$turn>;
        kill $try < 30 ? 'TERM' : 'KILL', $1 if defined $holder && $holder =~ /^(\d+)$/ && $1 > 1;
        wait_for(0.1);
    }
    die "another delivery service does not end\n";
}

# Names of queues, that of this boot last.
sub queues {
    opendir my $directory, '.' or return;
    my @names = grep { /^[0-9a-f]{8,32}$/ && $_ ne $boot } readdir $directory;
    my %changed = map { $_ => (stat $_)[9] // 0 } @names;
    return ((sort { $changed{$a} <=> $changed{$b} } @names), -d $boot ? $boot : ());
}

# The next events of a queue: [[N…], body], or nothing; a queue of an earlier boot that is empty goes.
sub batch {
    my ($queue) = @_;
    my $last = settled($queue);
    opendir my $directory, $queue or return;
    my @names = readdir $directory;
    my @waiting = sort { $a <=> $b } grep { /^\d+$/ && $_ <= $last } @names;
    if (!@waiting) {
        remove($queue, @names) if $queue ne $boot;
        return;
    }
    splice @waiting, EVENTS if @waiting > EVENTS;
    my $times = times_of($queue, @waiting);
    my ($body, @taken) = '';
    for my $n (@waiting) {
        my $line = event($queue, $n, $times->{$n});
        last if @taken && length($body) + length $line > $largest;
        $body .= $line;
        push @taken, $n;
    }
    return [\@taken, $body];
}

# The last number up to which all files are in place; counted losses become an event before it.
sub settled {
    my ($queue) = @_;
    open my $lock, '>>', "$queue/lock" or return 0;
    flock $lock, LOCK_EX;
    my $last = number("$queue/seq");
    my $lost = number("$queue/lost");
    return $last unless $lost;
    my $text = $lost == 1 ? '1 hook event was lost' : "$lost hook events were lost";
    my $done = write_file("$queue/new.lost", "$$ \n\n"
        . qq({"session_id":"","hook_event_name":"HookEventsLost","count":$lost,"message":"$text"}\n))
        && write_file("$queue/seq", $last + 1 . "\n");
    return $last unless $done && rename "$queue/new.lost", "$queue/" . ($last + 1);
    unlink "$queue/lost";
    return $last + 1;
}

sub number {
    my ($path) = @_;
    open my $in, '<', $path or return 0;
    my $text = <$in> // '';
    return $text =~ /^(\d{1,15})$/ ? $1 : 0;
}

sub write_file {
    my ($path, $text) = @_;
    sysopen my $out, $path, O_RDWR | O_CREAT or return 0;
    return defined syswrite($out, $text) && close $out;
}

# N => [seconds, ISO time] of each file: perl-base has no stat with nanoseconds.
sub times_of {
    my ($queue, @names) = @_;
    my %times;
    local $ENV{TZ} = 'UTC';
    open my $out, '-|', 'stat', '-c', '%n %Y %y', map { "$queue/$_" } @names or return {};
    while (<$out>) {
        $times{$1} = [$2, $3, $4] if m{/(\d+) (\d+) (\S+ [\d:]+)(?:\.(\d+))?};
    }
    close $out;
    return \%times;
}

# One line of the wire format.
sub event {
    my ($queue, $n, $time) = @_;
    open my $in, '<', "$queue/$n" or return '';
    sysread $in, my $text, EVENT + 1;
    my ($pid, $uuid, $project, $payload) = ($text // '') =~ /^(\d+) ([^\n]*)\n([^\n]*)\n(.*)/s or return '';
    my ($seconds, $date, $part) = $time ? @$time : (time, '1970-01-01 00:00:00', 0);
    $part = substr(($part // '') . '0' x 9, 0, 9);
    $date =~ tr/ /T/;
    $payload =~ tr/\n\r\0/   /;
    # Cut by hook.sh's limits or a full disk: then it ends with a block, or no JSON object is whole.
    my $whole = length($text) % 4096 && $payload =~ /^\s*\{.*\}\s*$/;
    my $what = $whole ? qq("payload":$payload) : '"head":"' . base64(substr $payload, 0, HEAD) . '"';
    return sprintf qq({"id":"%s:%d","time":"%s.%sZ","time_ns":%s%s,"pid":%d,"uuid":%s,"project":%s,%s}\n),
        $queue, $n, $date, $part, $seconds, $part, $pid, quoted($uuid), quoted($project), $what;
}

# Send a batch and remove what the host has; seconds to wait before the next try, or 0.
sub deliver {
    my ($queue, $taken, $body) = @_;
    my $last = $taken->[-1];
    if ($body ne '') {
        my ($status, $after, $answer) = post($body);
        if ($status == 413 && @$taken > 1) {
            $largest = int(length($body) / 2);
            return 0;
        }
        my $known = $status == 200 && $answer =~ /"last"\s*:\s*"$queue:(\d+)"/ ? $1 : 0;
        $known = $last if $status == 413; # alone, and will never be taken
        if ($known < $taken->[0]) {
            my $wait = $after || $pause;
            $pause = $pause * 2 < LONG ? $pause * 2 : LONG;
            return $wait;
        }
        $last = $known if $known < $last;
    }
    ($pause, $largest) = (SHORT, BODY);
    write_file("$queue/acked", "$last\n");
    unlink map { "$queue/$_" } grep { $_ <= $last } @$taken;
    return 0;
}

# (status, seconds of Retry-After, body) of the host's answer; status 0 when there is none.
sub post {
    my ($body) = @_;
    my $answer = '';
    eval {
        local $SIG{ALRM} = sub { die "no answer\n" };
        alarm ANSWER;
        my $server = IO::Socket::UNIX->new($socket) or die "no server\n";
        my $request = "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            . "Content-Type: application/x-ndjson\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
        while (length $request) {
            my $sent = syswrite $server, $request, 65536;
            last unless $sent; # it may have answered all the same
            substr $request, 0, $sent, '';
        }
        until ($answer =~ /\r\n\r\n/ && $answer =~ /^Content-Length: *(\d+)\r\n.*?\r\n\r\n(.*)/ims && length $2 >= $1) {
            sysread $server, $answer, 4096, length $answer or last;
            last if length $answer > 1 << 16;
        }
    };
    alarm 0;
    return (0, 0, '') unless $answer =~ m{^HTTP/1\.[01] (\d{3})};
    my $status = $1;
    my $after = $answer =~ /^Retry-After: *(\d{1,3})\r/im ? $1 : 0;
    return ($status, $after > 60 ? 60 : $after, $answer =~ /\r\n\r\n(.*)/s ? $1 : '');
}

sub remove {
    my ($queue, @names) = @_;
    unlink map { "$queue/$_" } grep { !/^\.\.?$/ } @names;
    rmdir $queue;
}

# A JSON string; perl-base has no module for it, nor for base64.
sub quoted {
    my ($text) = @_;
    $text =~ s/([\\"])/\\$1/g;
    $text =~ s/([\x00-\x1f])/sprintf '\\u%04x', ord $1/ge;
    return qq("$text");
}

sub base64 {
    my ($data) = @_;
    my $text = '';
    $text .= substr pack('u', $1), 1 while $data =~ /(.{1,45})/gs;
    $text =~ tr{`!-_\n}{AB-Za-z0-9+/}d;
    my $over = (3 - length($data) % 3) % 3;
    substr $text, -$over, $over, '=' x $over if $over;
    return $text;
}
