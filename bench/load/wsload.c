// wsload: a WebSocket load client. One epoll thread, thousands of connections to 127.0.0.1.
//
//   wsload -p PORT [-n N] [options]
//
// Connecting
//   -P PATH  request path; %d = client number, %s = line <client number> of the token file, %% = %
//   -H LINE  an extra header line, same templates (may be repeated)
//   -f TEXT  first text frame, sent after the 101, same templates
//   -T FILE  token file       -c K  handshakes in flight (64)       -S K  spread over source addresses 127.0.0.1..K
//   -R       a client counts as connected at its first data frame (default: at the 101)
//   -O PORT  where a client goes that had a session and lost it (may be repeated; one of them by chance)
//   -J SECS  it waits 0 to SECS before it comes back, and that much longer than a 503 tells it (0)
//   -o FILE  write "<client number> <sessionId>" of each client's first frame
// Receiving (pings are always answered)
//   -a       envelope protocol: a message is an envelope with "msgType":1, and is acknowledged; the acks of one read
//            go out in one frame. Other frames count as other. Put ack=1 into the path.
//   -m MARK  without -a: a message is one occurrence of MARK (default: each data frame is a message)
//   -L KEY   latency: CLOCK_MONOTONIC ns in decimal after KEY (say '"t":'), every occurrence
//   -q KEY   sequence: a number after KEY (say '"n":') grows by one on each connection; counts gaps, repeats, late
//   -s FILE  keep the message count in FILE (8 bytes, mmap), so that a publisher can bound what is in flight
//   -z US    sleep US between polls instead of blocking in epoll (throughput runs: the sender pays no wake-ups)
// Upstream, a closed loop for each client
//   -u TEXT  frame template (%d client number, %q sequence)          -k K  frames a write (1)
// One shot: -w WARM -d SECS: connect, warm up, measure, print one JSON line, exit.
// Otherwise commands on stdin, one JSON line each:
//   connect N | reset | stat | run SECS | wait MESSAGES SECS | up SECS | nap US | back LOST SECS | closeall | quit
// `back` waits until LOST sessions were lost and all clients have one again: when a half, 9 in 10 and all had.
// -D SECS: bound on the life of the process (120).
#define _GNU_SOURCE
#include "counter.h"
#include "timing.h"
#include "wsload.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct options options = {.path = "/", .handshakes = 64, .sources = 1, .upstream_frames = 1};
struct totals totals;
static uint64_t private_counter;
volatile uint64_t *counter = &private_counter;

struct one_shot {
    int clients;
    double warm_s, measured_s;
};

static double reset_s, reset_cpu_s;

static void reset(void) {
    uint64_t gaps = totals.gaps, repeats = totals.repeats, late = totals.late;
    memset(&totals, 0, sizeof totals);
    totals.gaps = gaps;
    totals.repeats = repeats;
    totals.late = late;
    for (int i = 0; i < client_count; i++)
        clients[i].got = clients[i].last_ns = 0;
    reset_s = now_s();
    reset_cpu_s = cpu_s();
}

static void print_per_client(void) {
    uint64_t least = UINT64_MAX, most = 0;
    for (int i = 0; i < client_count; i++) {
        if (clients[i].state != OPEN)
            continue;
        least = clients[i].got < least ? clients[i].got : least;
        most = clients[i].got > most ? clients[i].got : most;
    }
    printf(",\"least_per_client\":%lu,\"most_per_client\":%lu", least == UINT64_MAX ? 0 : least, most);
}

static void print_stat(void) {
    double took_s = now_s() - reset_s;
    const struct totals *t = &totals;
    printf("{\"secs\":%.6f,\"messages\":%lu,\"rate\":%.1f,\"frames\":%lu,\"other\":%lu,\"acked\":%lu,\"bytes\":%lu,"
           "\"reads\":%lu,\"bad\":%lu,\"ends\":%lu,\"pings\":%lu,\"open\":%d,\"first_s\":%.6f,\"last_s\":%.6f,"
           "\"cpu_s\":%.4f",
           took_s, t->messages, took_s > 0 ? (double)t->messages / took_s : 0, t->frames, t->other, t->acked, t->bytes,
           t->reads, t->bad, t->ends, t->pings, open_count, t->first_s, t->last_s, cpu_s() - reset_cpu_s);
    print_per_client();
    printf(",\"silence_s\":%.6f", (double)t->silence_ns * 1e-9);
    if (options.sequence_key)
        printf(",\"gaps\":%lu,\"repeats\":%lu,\"late\":%lu", sequence_gaps(), t->repeats, t->late);
    if (options.latency_key) {
        const struct histogram *h = &t->latency;
        printf(",\"latencies\":%lu,\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f",
               h->count, histogram_us(h, .5), histogram_us(h, .9), histogram_us(h, .99), histogram_us(h, .999),
               (double)h->max / 1e3);
    }
    printf("}\n");
}

static void run(double seconds) {
    reset();
    while (now_s() - reset_s < seconds)
        clients_turn(5);
    print_stat();
}

static void wait_for(uint64_t messages, double seconds) {
    double end_s = now_s() + seconds;
    while (totals.messages < messages && now_s() < end_s)
        clients_turn(5);
    print_stat();
}

// Times count from the first session that was lost.
static void come_back(uint64_t lost, double seconds) {
    double start_s = now_s(), first_s = 0, half_s = 0, most_s = 0, all_s = 0;
    while (!all_s && now_s() - start_s < seconds) {
        clients_turn(2);
        clients_wake();
        if (!totals.lost)
            continue;
        if (!first_s)
            first_s = now_s();
        uint64_t away = (uint64_t)(client_count - ready_count) + (lost > totals.lost ? lost - totals.lost : 0);
        double passed_s = now_s() - first_s;
        half_s = away * 2 <= lost && !half_s ? passed_s : half_s;
        most_s = away * 10 <= lost && !most_s ? passed_s : most_s;
        all_s = !away ? passed_s : 0;
    }
    printf("{\"lost\":%lu,\"refused\":%lu,\"refused_untold\":%lu,\"away\":%d,\"half_s\":%.3f,\"most_s\":%.3f,"
           "\"all_s\":%.3f}\n",
           totals.lost, totals.refused, totals.refused_untold, client_count - ready_count, half_s, most_s, all_s);
}

static bool any_outstanding(void) {
    for (int i = 0; i < client_count; i++)
        if (clients[i].up_outstanding && clients[i].state == OPEN)
            return true;
    return false;
}

static void run_upstream(double seconds) {
    reset();
    upstream_state = UP_RUNNING;
    for (int i = 0; i < client_count; i++) {
        clients[i].up_outstanding = 0;
        if (clients[i].state == OPEN)
            upstream_send(&clients[i]);
        if (i % 64 == 63)
            clients_turn(0);
    }
    while (now_s() - reset_s < seconds)
        clients_turn(5);
    print_stat();
    upstream_state = UP_ENDING;
    double end_s = now_s() + 1;
    while (now_s() < end_s && any_outstanding())
        clients_turn(5);
    upstream_state = UP_OFF;
}

static void obey(const char *line) {
    int count;
    unsigned long messages;
    double seconds;
    if (sscanf(line, "connect %d", &count) == 1)
        clients_connect(count);
    else if (sscanf(line, "run %lf", &seconds) == 1)
        run(seconds);
    else if (sscanf(line, "wait %lu %lf", &messages, &seconds) == 2)
        wait_for(messages, seconds);
    else if (sscanf(line, "back %lu %lf", &messages, &seconds) == 2 && options.other_port_count)
        come_back(messages, seconds);
    else if (sscanf(line, "up %lf", &seconds) == 1 && options.upstream)
        run_upstream(seconds);
    else if (!strcmp(line, "stat"))
        print_stat();
    else if (!strcmp(line, "quit"))
        exit(0);
    else if (!strcmp(line, "reset") || !strcmp(line, "closeall") || sscanf(line, "nap %d", &count) == 1) {
        if (line[0] == 'r')
            reset();
        else if (line[0] == 'c')
            clients_close_all();
        else
            options.nap_us = count;
        printf("{\"ok\":1}\n");
    } else
        printf("{\"error\":\"unknown command\"}\n");
}

static void obey_stdin(void) {
    static char buffer[4096];
    size_t size = 0;
    clients_watch_stdin();
    for (;;) {
        clients_turn(100);
        ssize_t n = read(0, buffer + size, sizeof buffer - size - 1);
        if (n == 0)
            return;
        if (n < 0)
            continue;
        size += (size_t)n;
        char *end;
        while ((end = memchr(buffer, '\n', size))) {
            char line[256];
            snprintf(line, sizeof line, "%.*s", (int)(end - buffer), buffer);
            size -= (size_t)(end + 1 - buffer);
            memmove(buffer, end + 1, size);
            obey(line);
        }
    }
}

static void read_tokens(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) {
        perror(path);
        exit(1);
    }
    options.tokens = malloc(MOST_CLIENTS * sizeof *options.tokens);
    char *line = NULL;
    size_t room = 0;
    while (options.token_count < MOST_CLIENTS && getline(&line, &room, file) > 0) {
        line[strcspn(line, "\r\n")] = 0;
        options.tokens[options.token_count++] = strdup(line);
    }
    free(line);
    fclose(file);
}

static void open_sessions(const char *path) {
    options.sessions = fopen(path, "w");
    if (!options.sessions) {
        perror(path);
        exit(1);
    }
}

static void set_option(int letter, const char *value, struct one_shot *shot) {
    switch (letter) {
    case 'p': options.port = atoi(value); break;
    case 'n': shot->clients = atoi(value); break;
    case 'P': options.path = value; break;
    case 'H': if (options.header_count < MOST_HEADERS) options.headers[options.header_count++] = value; break;
    case 'f': options.first_frame = value; break;
    case 'T': read_tokens(value); break;
    case 'c': options.handshakes = atoi(value); break;
    case 'S': options.sources = atoi(value); break;
    case 'R': options.ready_at_first_frame = true; break;
    case 'O': if (options.other_port_count < MOST_PORTS) options.other_ports[options.other_port_count++] = atoi(value); break;
    case 'J': options.jitter_s = atof(value); break;
    case 'o': open_sessions(value); break;
    case 'a': options.acks = true; break;
    case 'm': options.mark = value; break;
    case 'L': options.latency_key = value; break;
    case 'q': options.sequence_key = value; break;
    case 's': counter = counter_open(value); *counter = 0; break;
    case 'z': options.nap_us = atoi(value); break;
    case 'u': options.upstream = value; break;
    case 'k': options.upstream_frames = atoi(value); break;
    case 'w': shot->warm_s = atof(value); break;
    case 'd': shot->measured_s = atof(value); break;
    case 'D': options.end_s = now_s() + atof(value); break;
    default: exit(2);
    }
}

int main(int argc, char **argv) {
    struct one_shot shot = {0};
    int letter;
    options.end_s = now_s() + 120;
    while ((letter = getopt(argc, argv, "p:n:P:H:f:T:c:S:RO:J:o:am:L:q:s:z:u:k:w:d:D:")) > 0)
        set_option(letter, optarg, &shot);
    if (!options.port || options.sources < 1) {
        fprintf(stderr, "wsload -p PORT [options]; see the first comment of wsload.c\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    setvbuf(stdout, NULL, _IOLBF, 0);
    clients_set_up();
    reset();
    if (shot.clients)
        clients_connect(shot.clients);
    if (shot.measured_s <= 0) {
        obey_stdin();
        return 0;
    }
    for (double end_s = now_s() + shot.warm_s; now_s() < end_s;)
        clients_turn(5);
    if (options.upstream)
        run_upstream(shot.measured_s);
    else
        run(shot.measured_s);
    return 0;
}
