// The connections of wsload: sockets, handshakes and the event loop.
#define _GNU_SOURCE
#include "timing.h"
#include "wsload.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_SIZE (1 << 18)
#define STDIN_MARK UINT32_MAX
#define CONNECT_BOUND_S 60

struct client *clients;
int client_count, open_count, ready_count, done_count, failed_count;
static int epoll;

// Write `text` to `out` (TEMPLATE_ROOM bytes) with %d = id, %q = sequence, %s = the id's token, %% = %.
size_t expand(char *out, const char *text, int id, uint64_t sequence) {
    size_t n = 0, room = TEMPLATE_ROOM - 1;
    for (; *text && n < room; text++) {
        char kind = *text == '%' ? text[1] : 0;
        if (kind == 'd')
            n += (size_t)snprintf(out + n, room - n, "%d", id);
        else if (kind == 'q')
            n += (size_t)snprintf(out + n, room - n, "%lu", sequence);
        else if (kind == 's' && options.token_count)
            n += (size_t)snprintf(out + n, room - n, "%s", options.tokens[id % options.token_count]);
        else
            out[n++] = *text;
        text += kind == 'd' || kind == 'q' || kind == 's' || kind == '%';
    }
    n = n < room ? n : room;
    out[n] = 0;
    return n;
}

static double random_s(double most_s) {
    return most_s * (double)random() / (double)RAND_MAX;
}

// A client that had a session comes back, to another port.
static void client_wait(struct client *c, double wait_s) {
    close(c->fd);
    free(c->rest);
    c->rest = NULL;
    c->rest_size = c->rest_capacity = 0;
    c->state = WAITING;
    c->due_s = now_s() + wait_s + random_s(options.jitter_s);
}

static void client_close(struct client *c) {
    if (c->had_session && options.other_port_count) {
        if (c->state == OPEN && c->ready) {
            open_count--;
            ready_count--;
            totals.lost++;
        }
        c->ready = false;
        client_wait(c, c->state == OPEN ? 0 : 1);
        return;
    }
    if (c->state == OPEN && (c->ready || !options.ready_at_first_frame)) {
        open_count--;
    } else { // it never came to count as connected
        open_count -= c->state == OPEN;
        done_count++;
        failed_count++;
    }
    totals.ends++;
    close(c->fd);
    c->state = CLOSED;
    free(c->rest);
    c->rest = NULL;
    c->rest_size = c->rest_capacity = 0;
}

// Small frames on loopback always fit; one that does not would break the stream, so the connection ends. It is shut
// down rather than closed, since a caller may stand in the middle of its bytes: the next read sees the end.
void client_send_raw(struct client *c, const uint8_t *frames, size_t size) {
    if (send(c->fd, frames, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size)
        return;
    totals.bad++;
    shutdown(c->fd, SHUT_RDWR);
}

void client_send(struct client *c, enum opcode op, const char *payload, size_t size) {
    static uint8_t frame[TEMPLATE_ROOM + FRAME_HEADER_MAX];
    client_send_raw(c, frame, frame_write_masked(frame, op, payload, size));
}

static void client_open(uint32_t id, int port) {
    struct client *c = &clients[id];
    c->state = CONNECTING;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    struct linger at_once = {1, 0}; // closing thousands must not leave thousands of ports in TIME_WAIT
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    struct sockaddr_in from = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + id % (uint32_t)options.sources);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (c->fd < 0 || (options.sources > 1 && bind(c->fd, (struct sockaddr *)&from, sizeof from)) ||
        (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)) {
        perror("wsload: connect");
        exit(1);
    }
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.u32 = id};
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e);
}

static void client_start(void) {
    if (client_count >= MOST_CLIENTS) {
        fprintf(stderr, "wsload: more than %d clients\n", MOST_CLIENTS);
        exit(1);
    }
    uint32_t id = (uint32_t)client_count++;
    memset(&clients[id], 0, sizeof clients[id]);
    client_open(id, options.port);
}

void clients_wake(void) {
    double now = now_s();
    for (int i = 0; i < client_count; i++)
        if (clients[i].state == WAITING && clients[i].due_s <= now)
            client_open((uint32_t)i, options.other_ports[random() % options.other_port_count]);
}

static void send_request(struct client *c) {
    static char request[4 * TEMPLATE_ROOM], line[TEMPLATE_ROOM];
    int id = (int)(c - clients), error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        if (failed_count < 3 && !c->had_session)
            fprintf(stderr, "wsload: connect: %s\n", strerror(error));
        client_close(c);
        return;
    }
    expand(line, options.path, id, 0);
    int n = snprintf(request, sizeof request,
                     "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
                     line, options.port);
    for (int i = 0; i < options.header_count && n < 3 * TEMPLATE_ROOM; i++) {
        expand(line, options.headers[i], id, 0);
        n += snprintf(request + n, sizeof request - (size_t)n, "%s\r\n", line);
    }
    n += snprintf(request + n, sizeof request - (size_t)n, "\r\n");
    if (send(c->fd, request, (size_t)n, MSG_NOSIGNAL) != n) {
        client_close(c);
        return;
    }
    c->state = HANDSHAKE;
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = (uint32_t)id};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
}

// Frames may follow the answer's head in the same read.
static void take_answer(struct client *c, char *p, size_t n, uint64_t at_ns) {
    char *end = memmem(p, n, "\r\n\r\n", 4);
    if (!end && n < TEMPLATE_ROOM) {
        client_keep(c, p, n);
        return;
    }
    if (end && c->had_session && options.other_port_count && !memcmp(p, "HTTP/1.1 503", 12)) {
        char *told = strcasestr(p, "\r\nretry-after:");
        totals.refused++;
        totals.refused_untold += !told || told > end;
        client_wait(c, told && told < end ? atof(told + sizeof "\r\nretry-after:" - 1) : 1);
        return;
    }
    if (!end || n < 12 || memcmp(p, "HTTP/1.1 101", 12)) {
        if (failed_count < 3)
            fprintf(stderr, "wsload: bad handshake: %.*s\n", (int)(n > 300 ? 300 : n), p);
        totals.bad++;
        client_close(c);
        return;
    }
    c->state = OPEN;
    open_count++;
    done_count += !options.ready_at_first_frame;
    if (options.first_frame) {
        static char text[TEMPLATE_ROOM];
        client_send(c, OP_TEXT, text, expand(text, options.first_frame, (int)(c - clients), 0));
    }
    end += 4;
    receive_bytes(c, end, n - (size_t)(end - p), at_ns);
}

static void on_readable(struct client *c) {
    static char buffer[READ_SIZE];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        client_close(c);
        return;
    }
    uint64_t at_ns = now_ns();
    totals.reads++;
    totals.bytes += (uint64_t)n;
    totals.last_s = (double)at_ns * 1e-9;
    if (!totals.first_s)
        totals.first_s = totals.last_s;
    char *p = buffer;
    size_t size = (size_t)n;
    if (c->rest_size) {
        size += c->rest_size;
        if (c->rest_capacity < size) {
            c->rest_capacity = size * 2;
            c->rest = realloc(c->rest, c->rest_capacity);
        }
        memcpy(c->rest + c->rest_size, buffer, (size_t)n);
        p = c->rest;
    }
    if (c->state == HANDSHAKE)
        take_answer(c, p, size, at_ns);
    else
        receive_bytes(c, p, size, at_ns);
}

void clients_turn(int timeout_ms) {
    static struct epoll_event events[2048];
    if (now_s() > options.end_s) {
        fprintf(stderr, "wsload: time bound reached\n");
        exit(3);
    }
    int n = epoll_wait(epoll, events, 2048, options.nap_us ? 0 : timeout_ms);
    if (n <= 0 && options.nap_us) {
        struct timespec nap = {0, options.nap_us * 1000L};
        nanosleep(&nap, NULL);
    }
    for (int i = 0; i < n; i++) {
        if (events[i].data.u32 == STDIN_MARK)
            continue;
        struct client *c = &clients[events[i].data.u32];
        if (c->state == CONNECTING)
            send_request(c);
        else if (c->state != CLOSED && c->state != WAITING)
            on_readable(c);
    }
}

void clients_connect(int count) {
    int nap_us = options.nap_us, started = 0, done = done_count, failed = failed_count;
    double start_s = now_s(), start_cpu_s = cpu_s();
    options.nap_us = 0;
    while (done_count - done < count && now_s() < start_s + CONNECT_BOUND_S) {
        while (started < count && started - (done_count - done) < options.handshakes) {
            client_start();
            started++;
        }
        clients_turn(10);
    }
    options.nap_us = nap_us;
    double took_s = now_s() - start_s;
    printf("{\"connected\":%d,\"failed\":%d,\"open\":%d,\"ready\":%d,\"secs\":%.6f,\"rate\":%.1f,\"cpu_s\":%.4f}\n",
           done_count - done - (failed_count - failed), failed_count - failed, open_count, ready_count, took_s,
           (done_count - done) / took_s, cpu_s() - start_cpu_s);
}

void clients_set_up(void) {
    clients = calloc(MOST_CLIENTS, sizeof *clients);
    epoll = epoll_create1(EPOLL_CLOEXEC);
}

void clients_watch_stdin(void) {
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = STDIN_MARK};
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &e);
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
}

void clients_close_all(void) {
    for (int i = 0; i < client_count; i++) {
        if (clients[i].state == CLOSED || clients[i].state == WAITING)
            continue;
        close(clients[i].fd);
        free(clients[i].rest);
    }
    client_count = open_count = ready_count = 0;
}
