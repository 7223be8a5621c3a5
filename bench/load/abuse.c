// abuse: what stands on the open internet beside the clients. One epoll thread against 127.0.0.1.
//
//   abuse -p PORT -T TOKENS [-A HOST] [kinds] [-d SECS]
//
// All of it comes from one source address (-A, the last byte of 127.0.0.x, 66), sessions with tokens of the file in turn.
// Kinds, each off until it is asked for; N: so many connections all the time, R: so many new ones a second
//   -c R  connect and say nothing                     -t R  a handshake with a token that somebody made up
//   -l N  slowloris: a byte of a good handshake a second, for ever
//   -g R  a good handshake, then garbage              -o R  a good handshake, then a frame of 2^40 bytes
//   -F N  a good handshake, then one message in endless empty and tiny fragments
//   -f N  a good handshake, then frames as fast as the socket takes them    -P N  the same with pings
//   -b N  the same with frames that are no JSON
// A connection that is cut comes again after -w SECS (0.2); one that is left alone goes after -L SECS (2), but for those
// of N. At the end it prints one JSON line: for each kind how many connections it tried, how many were let in (101), how
// many were refused with an HTTP answer, and how many were cut; bytes written; cpu_s.
#define _GNU_SOURCE
#include "frame.h"
#include "timing.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 40000
#define MOST_TOKENS 4096
#define FLOOD_BYTES 16384
#define DRIP_S 1.0

enum kind { CONNECTS, GUESSES, SLOW, GARBAGE, OVERSIZED, FRAGMENTS, FLOOD, PINGS, NOT_JSON, KINDS };
enum state { FREE, CONNECTING, OPENING, IN };

static const char *const names[KINDS] = {"connects", "guesses",   "slow",  "garbage", "oversized",
                                         "fragments", "flood",     "pings", "not_json"};

struct connection {
    int fd;
    enum kind kind;
    enum state state;
    double due_s; // SLOW: the next byte; others: when it goes by itself
    size_t sent;  // SLOW: bytes of its handshake
    uint32_t next_free;
};

struct count {
    uint64_t tried, let_in, refused, cut;
};

static struct {
    int port, source;
    double rates[KINDS], wait_s, life_s, seconds;
    int held[KINDS];
} options = {.source = 66, .wait_s = .2, .life_s = 2, .seconds = 10};

static struct connection connections[MOST];
static struct count counts[KINDS];
static double next_s[KINDS];
static double again_s[MOST]; // of a place whose connection was cut: when it may be taken again
static uint32_t first_free;
static int alive, here[KINDS], epoll, token_count, token_at;
static char *tokens[MOST_TOKENS];
static uint64_t bytes;
static uint8_t floods[KINDS][FLOOD_BYTES];
static size_t flood_sizes[KINDS];

static bool is_held(enum kind kind) {
    return kind == SLOW || kind >= FRAGMENTS;
}

static size_t request_of(const struct connection *c, char *out, size_t room) {
    static const char made_up[] =
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJyb290In0.%08lx%08lx%08lx%08lx%08lx00";
    char token[1024];
    if (c->kind == GUESSES)
        snprintf(token, sizeof token, made_up, random(), random(), random(), random(), random());
    else
        snprintf(token, sizeof token, "%s", tokens[token_at++ % token_count]);
    return (size_t)snprintf(out, room,
                            "GET /websocket HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
                            "Authorization: Bearer %s\r\n\r\n",
                            options.port, token);
}

static void drop(struct connection *c, bool was_cut) {
    uint32_t place = (uint32_t)(c - connections);
    counts[c->kind].cut += was_cut;
    close(c->fd);
    c->state = FREE;
    here[c->kind]--;
    alive--;
    again_s[place] = now_s() + (is_held(c->kind) ? options.wait_s : 0);
    c->next_free = first_free;
    first_free = place;
}

static void watch(struct connection *c, uint32_t events, int how) {
    struct epoll_event e = {.events = events, .data.u32 = (uint32_t)(c - connections)};
    epoll_ctl(epoll, how, c->fd, &e);
}

static bool start(enum kind kind, double now) {
    uint32_t place = first_free;
    if (place == MOST)
        return false;
    struct connection *c = &connections[place];
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0)
        return false;
    struct linger at_once = {1, 0}; // a reset leaves no port in TIME_WAIT
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK - 1 + (uint32_t)options.source);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons((uint16_t)options.port);
    counts[kind].tried++;
    if (bind(fd, (struct sockaddr *)&from, sizeof from) ||
        (connect(fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)) {
        counts[kind].cut++;
        close(fd);
        return false;
    }
    first_free = c->next_free;
    *c = (struct connection){.fd = fd, .kind = kind, .state = CONNECTING, .due_s = now + options.life_s};
    here[kind]++;
    alive++;
    watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
    return true;
}

static void start_due(double now) {
    for (int kind = 0; kind < KINDS; kind++) {
        if (is_held(kind)) {
            // Those that were cut come again after a while: as many a turn as that lets.
            int most = (int)(options.held[kind] / options.wait_s / 500) + 1;
            while (here[kind] < options.held[kind] && most-- > 0 && now >= again_s[first_free % MOST] &&
                   start(kind, now))
                ;
            continue;
        }
        if (options.rates[kind] <= 0)
            continue;
        if (now - next_s[kind] > .05)
            next_s[kind] = now - .05; // what a starved process was late with is not made up for
        for (; next_s[kind] <= now; next_s[kind] += 1 / options.rates[kind])
            if (!start(kind, now))
                break;
    }
}

static void send_handshake(struct connection *c) {
    char request[2048];
    size_t size = request_of(c, request, sizeof request);
    if (send(c->fd, request, size, MSG_NOSIGNAL) != (ssize_t)size) {
        drop(c, true);
        return;
    }
    bytes += size;
    c->state = OPENING;
    watch(c, EPOLLIN, EPOLL_CTL_MOD);
}

static void on_connected(struct connection *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        drop(c, true);
        return;
    }
    if (c->kind == CONNECTS || c->kind == SLOW) {
        c->state = OPENING;
        c->due_s = c->kind == SLOW ? 0 : c->due_s;
        watch(c, EPOLLIN, EPOLL_CTL_MOD);
        return;
    }
    send_handshake(c);
}

static void drip(struct connection *c, double now) {
    char request[2048];
    size_t size = request_of(c, request, sizeof request);
    c->due_s = now + DRIP_S;
    if (send(c->fd, request + c->sent % size, 1, MSG_NOSIGNAL) != 1)
        drop(c, true);
    c->sent++;
    bytes++;
}

static void flood(struct connection *c) {
    for (int i = 0; i < 4; i++) {
        ssize_t n = send(c->fd, floods[c->kind], flood_sizes[c->kind], MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            drop(c, true);
            return;
        }
        bytes += (uint64_t)n;
        if ((size_t)n < flood_sizes[c->kind])
            return; // from here on its frames no longer meet their boundaries: garbage, which is well, too
    }
}

static void on_let_in(struct connection *c) {
    c->state = IN;
    counts[c->kind].let_in++;
    if (is_held(c->kind)) {
        watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
        return;
    }
    if (send(c->fd, floods[c->kind], flood_sizes[c->kind], MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        drop(c, true);
}

static void on_readable(struct connection *c) {
    static char buffer[1 << 16];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        drop(c, true);
        return;
    }
    if (c->state != OPENING || n < 12)
        return;
    if (!memcmp(buffer, "HTTP/1.1 101", 12)) {
        on_let_in(c);
        return;
    }
    counts[c->kind].refused++;
    drop(c, false);
}

static void end_overdue(double now) {
    for (int i = 0; i < MOST; i++) {
        struct connection *c = &connections[i];
        if (c->state == FREE || c->state == CONNECTING || c->due_s > now)
            continue;
        if (c->kind == SLOW)
            drip(c, now);
        else if (!is_held(c->kind))
            drop(c, false);
    }
}

static void turn(void) {
    static struct epoll_event events[1024];
    static double looked_s;
    double now = now_s();
    start_due(now);
    if (now - looked_s > .02) {
        looked_s = now;
        end_overdue(now);
    }
    int n = epoll_wait(epoll, events, 1024, 1);
    for (int i = 0; i < n; i++) {
        struct connection *c = &connections[events[i].data.u32];
        if (c->state == CONNECTING)
            on_connected(c);
        if (c->state != FREE && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            on_readable(c);
        if (c->state == IN && is_held(c->kind) && events[i].events & EPOLLOUT)
            flood(c);
    }
}

static void fill(enum kind kind, const char *text, enum opcode op) {
    size_t size = 0, length = strlen(text);
    while (size + length + FRAME_HEADER_MAX <= FLOOD_BYTES)
        size += frame_write_masked(floods[kind] + size, op, text, length);
    flood_sizes[kind] = size;
}

static void prepare(void) {
    static const uint8_t huge[] = {0x81, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4};
    fill(FLOOD, "{\"msgType\":3}", OP_TEXT);
    fill(NOT_JSON, "{\"msgType\":1,\"to\":[[[[[[", OP_TEXT);
    fill(PINGS, "ping", OP_PING);
    for (size_t i = 0; i < FLOOD_BYTES; i++)
        floods[GARBAGE][i] = (uint8_t)random();
    flood_sizes[GARBAGE] = 4096;
    memcpy(floods[OVERSIZED], huge, sizeof huge);
    flood_sizes[OVERSIZED] = FLOOD_BYTES;
    // The first fragment opens a text, the rest go on with nothing or one byte; none ends it.
    uint8_t *out = floods[FRAGMENTS];
    for (size_t i = 0; i + 7 < FLOOD_BYTES; i += 7) {
        const uint8_t one[] = {0x00, 0x81, 0, 0, 0, 0, 'a'};
        memcpy(out + i, one, 7);
        flood_sizes[FRAGMENTS] = i + 7;
    }
    out[0] = 0x01;
}

static void read_tokens(const char *path) {
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    while (file && token_count < MOST_TOKENS && getline(&line, &room, file) > 0) {
        line[strcspn(line, "\r\n")] = 0;
        tokens[token_count++] = strdup(line);
    }
    free(line);
    if (file)
        fclose(file);
}

static void set_option(int letter, const char *value) {
    static const char kinds[] = "ctlgoFfPb";
    const char *kind = strchr(kinds, letter);
    if (kind) {
        int place = (int)(kind - kinds);
        options.rates[place] = atof(value);
        options.held[place] = atoi(value);
        return;
    }
    switch (letter) {
    case 'p': options.port = atoi(value); break;
    case 'A': options.source = atoi(value); break;
    case 'T': read_tokens(value); break;
    case 'w': options.wait_s = atof(value); break;
    case 'L': options.life_s = atof(value); break;
    case 'd': options.seconds = atof(value); break;
    default: exit(2);
    }
}

int main(int argc, char **argv) {
    int letter;
    while ((letter = getopt(argc, argv, "p:A:T:c:t:l:g:o:F:f:P:b:w:L:d:")) > 0)
        set_option(letter, optarg);
    if (!options.port || !token_count) {
        fprintf(stderr, "abuse -p PORT -T TOKENS [kinds]; see the first comment of abuse.c\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    for (uint32_t i = 0; i < MOST; i++)
        connections[i].next_free = i + 1;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    prepare();
    double end_s = now_s() + options.seconds;
    while (now_s() < end_s)
        turn();
    printf("{\"bytes\":%lu,\"cpu_s\":%.3f,\"secs\":%.3f", bytes, cpu_s(), options.seconds);
    for (int kind = 0; kind < KINDS; kind++)
        printf(",\"%s_tried\":%lu,\"%s_in\":%lu,\"%s_refused\":%lu,\"%s_cut\":%lu", names[kind], counts[kind].tried,
               names[kind], counts[kind].let_in, names[kind], counts[kind].refused, names[kind], counts[kind].cut);
    printf("}\n");
    return 0;
}
