// httppub: an HTTP/1.1 POST load generator for push APIs. One epoll thread, keep-alive, 127.0.0.1 only.
//
//   httppub -p PORT -P PATH [-H LINE]... -b ITEM [options]
//
// Body
//   -b ITEM     one item; %d target client, %n that client's own sequence number (only without -X), %q sequence
//               number of the item, %t CLOCK_MONOTONIC ns, %p padding, %% = %
//   -x PREFIX -y SUFFIX -B K   the body is PREFIX, K items joined by commas, SUFFIX
//   -n CLIENTS  targets 0..CLIENTS-1 in turn (1), or at random with -X       -l BYTES  of padding
// Load
//   -c CONNS    connections (16)        -q DEPTH  requests in flight on each (1)        -d SECS  (5)
//   -r ITEMS/S  paced; 0 (default) is a closed loop, as fast as the answers allow
//   -s FILE -F FAN -W WINDOW   hold back while items * FAN - (count in FILE, which wsload -s writes) > WINDOW
//   -E TEXT     an answer whose body contains TEXT counts as an error (errors that come with status 200)
//   -w SECS     how long it waits for answers at the end (3)
// At the end it prints one JSON line: items, requests, ok, non200 (of them: refused_429, refused_503, and those with a
// Retry-After), errors, secs, items_per_s, answer latency, how late paced sends were, cpu_s.
#define _GNU_SOURCE
#include "counter.h"
#include "histogram.h"
#include "timing.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_DEPTH 1024 // a power of two
#define MOST_HEADERS 16
#define BODY_ROOM (4 << 20)
#define READ_ROOM (1 << 17)

struct connection {
    int fd;
    int in_flight;
    uint64_t sent_ns[MOST_DEPTH]; // a ring: answers come in the order of requests
    unsigned oldest, next;
    char *in;
    size_t in_size, in_room;
};

static struct {
    int port, connections, depth, batch, targets, padding;
    bool random;
    const char *path, *item, *prefix, *suffix, *error_text, *counter_path, *headers[MOST_HEADERS];
    int header_count;
    double rate, seconds, fan, window, patience_s;
} options = {.connections = 16, .depth = 1, .batch = 1, .targets = 1, .path = "/", .item = "{}", .prefix = "",
             .suffix = "", .seconds = 5, .patience_s = 3};

static struct connection *connections;
static volatile uint64_t *counter;
static uint64_t counter_base;
static struct histogram answers;
static uint64_t requests, items, ok, non200, refused_429, refused_503, told_when, errors, late_max_ns, late_sum_ns;
static char head[8192];
static size_t head_size;

// ---- requests ----

static char *put_number(char *out, uint64_t value) {
    char digits[24];
    int at = sizeof digits;
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    memcpy(out, digits + at, sizeof digits - (size_t)at);
    return out + sizeof digits - at;
}

static char *put(char *out, const char *text) {
    size_t size = strlen(text);
    memcpy(out, text, size);
    return out + size;
}

static uint64_t next_random(void) {
    static uint64_t state = 88172645463325252ull; // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static char *put_item(char *out, uint64_t sequence, uint64_t at_ns) {
    uint64_t targets = (uint64_t)options.targets;
    uint64_t target = (options.random ? next_random() : sequence) % targets;
    for (const char *s = options.item; *s; s++) {
        if (*s != '%') {
            *out++ = *s;
            continue;
        }
        switch (*++s) {
        case 'd': out = put_number(out, target); break;
        case 'n': out = put_number(out, sequence / targets); break;
        case 'q': out = put_number(out, sequence); break;
        case 't': out = put_number(out, at_ns); break;
        case 'p': memset(out, 'x', (size_t)options.padding); out += options.padding; break;
        case 0: return out;
        default: *out++ = *s;
        }
    }
    return out;
}

// The next request, head and body; its size in *size.
static const char *build(size_t *size) {
    static char body[BODY_ROOM], request[BODY_ROOM + sizeof head + 64];
    uint64_t at_ns = now_ns();
    char *end = put(body, options.prefix);
    for (int k = 0; k < options.batch; k++) {
        if (k)
            *end++ = ',';
        end = put_item(end, items++, at_ns);
    }
    end = put(end, options.suffix);
    char *out = request;
    memcpy(out, head, head_size);
    out = put(put_number(out + head_size, (uint64_t)(end - body)), "\r\n\r\n");
    memcpy(out, body, (size_t)(end - body));
    *size = (size_t)(out - request) + (size_t)(end - body);
    return request;
}

static void send_request(struct connection *c) {
    size_t size;
    const char *p = build(&size);
    uint64_t at_ns = now_ns();
    while (size) {
        ssize_t sent = send(c->fd, p, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR) {
            perror("httppub: send");
            exit(1);
        }
        p += sent > 0 ? sent : 0;
        size -= sent > 0 ? (size_t)sent : 0;
    }
    c->sent_ns[c->next++ % MOST_DEPTH] = at_ns;
    c->in_flight++;
    requests++;
}

// ---- answers ----

static const char *find_header(const char *p, const char *end, const char *name) {
    const char *at = strcasestr(p, name);
    return at && at < end ? at + strlen(name) : NULL;
}

// The end of the answer that starts at `p` (a string that ends at `end`), its body in *body; NULL: not whole yet.
static const char *answer_end(const char *p, const char *end, const char **body) {
    const char *head_end = memmem(p, (size_t)(end - p), "\r\n\r\n", 4);
    if (!head_end)
        return NULL;
    *body = head_end + 4;
    const char *length = find_header(p, head_end, "\r\ncontent-length:");
    if (length || !find_header(p, head_end, "\r\ntransfer-encoding: chunked")) {
        const char *stop = *body + (length ? atol(length) : 0);
        return stop <= end ? stop : NULL;
    }
    const char *last = memmem(*body, (size_t)(end - *body), "0\r\n\r\n", 5);
    return last ? last + 5 : NULL;
}

static void take_answer(struct connection *c, const char *p, const char *body, const char *stop) {
    int status = atoi(p + sizeof "HTTP/1.1");
    if (status == 200)
        ok++;
    else if (++non200 < 3)
        fprintf(stderr, "httppub: answer: %.300s\n", p);
    refused_429 += status == 429;
    refused_503 += status == 503;
    told_when += status != 200 && find_header(p, body, "\r\nretry-after:");
    const char *text = options.error_text;
    if (text && memmem(body, (size_t)(stop - body), text, strlen(text)) && ++errors < 3)
        fprintf(stderr, "httppub: error body: %.*s\n", (int)(stop - body > 300 ? 300 : stop - body), body);
    histogram_add(&answers, now_ns() - c->sent_ns[c->oldest++ % MOST_DEPTH]);
    c->in_flight--;
}

static void on_readable(struct connection *c) {
    if (c->in_room - c->in_size < READ_ROOM / 2) {
        c->in_room = c->in_size + READ_ROOM;
        c->in = realloc(c->in, c->in_room);
    }
    ssize_t n = recv(c->fd, c->in + c->in_size, c->in_room - c->in_size - 1, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        fprintf(stderr, "httppub: the server closed a connection\n");
        exit(1);
    }
    c->in_size += (size_t)n;
    const char *p = c->in, *end = c->in + c->in_size, *body, *stop;
    c->in[c->in_size] = 0;
    while ((stop = answer_end(p, end, &body))) {
        take_answer(c, p, body, stop);
        p = stop;
    }
    c->in_size = (size_t)(end - p);
    memmove(c->in, p, c->in_size);
}

// ---- the load ----

static bool held_back(void) {
    return counter && options.fan > 0 && (double)items * options.fan - (double)(*counter - counter_base) > options.window;
}

static struct connection *free_connection(void) {
    static int turn;
    for (int i = 0; i < options.connections; i++) {
        struct connection *c = &connections[turn];
        turn = (turn + 1) % options.connections;
        if (c->in_flight < options.depth)
            return c;
    }
    return NULL;
}

// Send what is due of a paced load; returns how long to wait for events, in ns.
static long send_due(uint64_t start_ns) {
    static uint64_t sent;
    double period_ns = 1e9 * options.batch / options.rate;
    for (;;) {
        uint64_t now = now_ns(), due_ns = start_ns + (uint64_t)((double)sent * period_ns);
        if (due_ns > now)
            return due_ns - now < 2000000 ? (long)(due_ns - now) : 2000000;
        struct connection *c = free_connection();
        if (!c)
            return 1000000;
        late_sum_ns += now - due_ns;
        late_max_ns = now - due_ns > late_max_ns ? now - due_ns : late_max_ns;
        send_request(c);
        sent++;
    }
}

// Fill every connection to its depth, as far as the window allows; returns how long to wait for events, in ns.
static long send_all(void) {
    struct connection *c;
    while ((c = free_connection())) {
        if (held_back())
            return 200000;
        send_request(c);
    }
    return 5000000;
}

static void take_events(int epoll, long wait_ns) {
    struct epoll_event events[256];
    struct timespec wait = {0, wait_ns};
    int n = epoll_pwait2(epoll, events, 256, &wait, NULL);
    for (int i = 0; i < n; i++)
        on_readable(&connections[events[i].data.u32]);
}

static int in_flight(void) {
    int sum = 0;
    for (int i = 0; i < options.connections; i++)
        sum += connections[i].in_flight;
    return sum;
}

static int connect_all(void) {
    int epoll = epoll_create1(EPOLL_CLOEXEC), one = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connections = calloc((size_t)options.connections, sizeof *connections);
    for (int i = 0; i < options.connections; i++) {
        int fd = connections[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(fd, (struct sockaddr *)&to, sizeof to)) {
            perror("httppub: connect");
            exit(1);
        }
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
    }
    return epoll;
}

static void build_head(void) {
    int n = snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n",
                     options.path, options.port);
    for (int i = 0; i < options.header_count; i++)
        n += snprintf(head + n, sizeof head - (size_t)n, "%s\r\n", options.headers[i]);
    n += snprintf(head + n, sizeof head - (size_t)n, "Content-Length: ");
    head_size = (size_t)n;
}

static void set_option(int letter, const char *value) {
    switch (letter) {
    case 'p': options.port = atoi(value); break;
    case 'P': options.path = value; break;
    case 'H': if (options.header_count < MOST_HEADERS) options.headers[options.header_count++] = value; break;
    case 'b': options.item = value; break;
    case 'x': options.prefix = value; break;
    case 'y': options.suffix = value; break;
    case 'B': options.batch = atoi(value); break;
    case 'n': options.targets = atoi(value); break;
    case 'X': options.random = true; break;
    case 'l': options.padding = atoi(value); break;
    case 'c': options.connections = atoi(value); break;
    case 'q': options.depth = atoi(value); break;
    case 'r': options.rate = atof(value); break;
    case 'd': options.seconds = atof(value); break;
    case 's': options.counter_path = value; break;
    case 'F': options.fan = atof(value); break;
    case 'W': options.window = atof(value); break;
    case 'E': options.error_text = value; break;
    case 'w': options.patience_s = atof(value); break;
    default: exit(2);
    }
}

// Whether every number is one that the fixed rooms and rings above can bear.
static bool options_fit(void) {
    size_t item = strlen(options.item) * 20 + (size_t)options.padding;
    return options.port > 0 && options.batch > 0 && options.targets > 0 && options.connections > 0 &&
           options.depth > 0 && options.depth < MOST_DEPTH && options.padding >= 0 && options.padding <= 65536 &&
           item * (size_t)options.batch + strlen(options.prefix) + strlen(options.suffix) < BODY_ROOM;
}

int main(int argc, char **argv) {
    int letter;
    while ((letter = getopt(argc, argv, "p:P:H:b:x:y:B:n:Xl:c:q:r:d:s:F:W:E:w:")) > 0)
        set_option(letter, optarg);
    if (!options_fit()) {
        fprintf(stderr, "httppub -p PORT -P PATH -b ITEM [options]; see the first comment of httppub.c\n");
        return 2;
    }
    prctl(PR_SET_TIMERSLACK, 1UL); // paced sends: the kernel's default slack is 50 us
    if (options.counter_path)
        counter = counter_open(options.counter_path);
    build_head();
    int epoll = connect_all();
    counter_base = counter ? *counter : 0;
    double start_cpu_s = cpu_s();
    uint64_t start_ns = now_ns(), end_ns = start_ns + (uint64_t)(options.seconds * 1e9);
    while (now_ns() < end_ns)
        take_events(epoll, options.rate > 0 ? send_due(start_ns) : send_all());
    double took_s = (double)(now_ns() - start_ns) * 1e-9;
    uint64_t patience_ns = now_ns() + (uint64_t)(options.patience_s * 1e9);
    while (in_flight() && now_ns() < patience_ns)
        take_events(epoll, 50000000);
    printf("{\"items\":%lu,\"requests\":%lu,\"ok\":%lu,\"non200\":%lu,\"refused_429\":%lu,\"refused_503\":%lu,"
           "\"told_when\":%lu,\"errors\":%lu,\"unanswered\":%d,\"secs\":%.6f,"
           "\"items_per_s\":%.1f,\"answer_p50_us\":%.1f,\"answer_p99_us\":%.1f,\"answer_max_us\":%.1f,"
           "\"late_mean_us\":%.1f,\"late_max_us\":%.1f,\"cpu_s\":%.4f}\n",
           items, requests, ok, non200, refused_429, refused_503, told_when, errors, in_flight(), took_s,
           (double)items / took_s,
           histogram_us(&answers, .5), histogram_us(&answers, .99), (double)answers.max / 1e3,
           requests ? (double)late_sum_ns / 1e3 / (double)requests : 0, (double)late_max_ns / 1e3,
           cpu_s() - start_cpu_s);
    return 0;
}
