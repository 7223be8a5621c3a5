// csrv: a WebSocket server in C on one epoll thread, the physical limit that fan-out figures are compared with.
//
//   csrv PORT CONTROL_PORT          (both on 127.0.0.1)
//
// It sends 320-byte text frames of the same shape as the project's envelope, one send() a frame, `to`, `sessionId`
// and `messageId` spliced in, as a gateway has to. Commands are lines on a TCP connection to CONTROL_PORT:
//   fan M      M messages, each to all connections, one turn of the event loop between messages
//   uni M B    M messages, each to a random connection, a turn of the loop after each B
//   burst M K  M messages in all, K in a row to each connection, a turn of the loop after each round
//   info       only the numbers
//   quit
// Each answers one JSON line: sent, the monotonic clock at start and end (start_s, end_s), CPU seconds (user_s,
// system_s), connections, inbound frames, bytes that the kernel has not taken yet (backlog), short sends.
// Inbound frames are counted and not looked at. When the control connection ends, so does the server.
#define _GNU_SOURCE
#include "frame.h"
#include "timing.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_FDS 65536
#define PAYLOAD 320
#define ACCEPTS_A_TURN 64

struct connection {
    int fd;
    int index; // in `open`, or -1 before the handshake
    // Inbound: a frame header that is not whole yet, then the payload bytes still to skip.
    uint8_t header[FRAME_HEADER_MAX];
    int header_size;
    uint64_t skip;
    // Outbound bytes that the kernel did not take.
    char *unsent;
    size_t unsent_size, unsent_capacity;
    char to[16];
    char session_id[64];
};

static struct connection *by_fd[MOST_FDS];
static struct connection *open_[MOST_FDS];
static int open_count;
static int epoll, listener, control_listener, control = -1;
static uint64_t inbound, short_sends;

// The client's key is the one of RFC 6455 section 1.3 (wsload always sends that), so its answer is a constant.
static const char SWITCHING[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static void watch(int fd, int operation, uint32_t events) {
    struct epoll_event e = {.events = events, .data.fd = fd};
    epoll_ctl(epoll, operation, fd, &e);
}

static void append(char **at, const char *text, size_t size) {
    memcpy(*at, text, size);
    *at += size;
}

// One frame for `c`: a 4-byte header and PAYLOAD bytes; the text in msg is as long as it takes to fill them.
static size_t build(const struct connection *c, uint64_t number, char *frame) {
    static const char a[] = "{\"activeTime\":1607080644685,\"from\":\"system\",\"messageId\":\"";
    static const char b[] = "\",\"msg\":{\"text\":\"";
    static const char d[] = "\"},\"requestId\":\"0b5bd0a6-3d4c-4b6f-9d5e-0c9d1a7b2e11\",\"sessionId\":\"";
    static const char e[] = "\",\"to\":\"", f[] = "\",\"trigger\":1,\"msgType\":1}";
    static const char digits[] = "0123456789abcdef";
    static char filler[PAYLOAD];
    if (!filler[0])
        memset(filler, 'x', sizeof filler);
    size_t to = strlen(c->to), session = strlen(c->session_id);
    size_t fixed = sizeof a + sizeof b + sizeof d + sizeof e + sizeof f - 5 + 32 + to + session;
    char id[32];
    for (int i = 31; i >= 0; i--, number >>= 4)
        id[i] = digits[number & 15];
    char *at = frame;
    append(&at, (char[]){(char)0x81, 126, PAYLOAD >> 8, PAYLOAD & 255}, 4);
    append(&at, a, sizeof a - 1);
    append(&at, id, 32);
    append(&at, b, sizeof b - 1);
    append(&at, filler, PAYLOAD - fixed);
    append(&at, d, sizeof d - 1);
    append(&at, c->session_id, session);
    append(&at, e, sizeof e - 1);
    append(&at, c->to, to);
    append(&at, f, sizeof f - 1);
    return (size_t)(at - frame);
}

static void send_frame(struct connection *c, const char *p, size_t size) {
    if (!c->unsent_size) {
        ssize_t sent = send(c->fd, p, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent == (ssize_t)size)
            return;
        short_sends++;
        if (sent > 0) {
            p += sent;
            size -= (size_t)sent;
        }
        watch(c->fd, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
    if (c->unsent_size + size > c->unsent_capacity) {
        c->unsent_capacity = (c->unsent_size + size) * 2;
        c->unsent = realloc(c->unsent, c->unsent_capacity);
    }
    memcpy(c->unsent + c->unsent_size, p, size);
    c->unsent_size += size;
}

static void send_unsent(struct connection *c) {
    ssize_t sent = send(c->fd, c->unsent, c->unsent_size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) {
        c->unsent_size -= (size_t)sent;
        memmove(c->unsent, c->unsent + sent, c->unsent_size);
    }
    if (!c->unsent_size)
        watch(c->fd, EPOLL_CTL_MOD, EPOLLIN);
}

// Count the frames in what was read; a frame may come in any number of pieces.
static void count_inbound(struct connection *c, const uint8_t *p, size_t n) {
    while (n) {
        if (c->skip) {
            size_t step = c->skip < n ? (size_t)c->skip : n;
            c->skip -= step;
            p += step;
            n -= step;
            continue;
        }
        struct frame_header h;
        c->header[c->header_size++] = *p++;
        n--;
        if (frame_read_header(c->header, (size_t)c->header_size, &h)) {
            c->skip = h.length;
            c->header_size = 0;
            inbound++;
        }
    }
}

static void close_connection(struct connection *c) {
    close(c->fd);
    by_fd[c->fd] = NULL;
    if (c->index >= 0) {
        open_[c->index] = open_[--open_count];
        open_[c->index]->index = c->index;
    }
    free(c->unsent);
    free(c);
}

static void on_readable(struct connection *c) {
    static uint8_t buffer[1 << 18];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        close_connection(c);
    } else if (c->index >= 0) {
        count_inbound(c, buffer, (size_t)n);
    } else if (n >= 4 && !memcmp(buffer + n - 4, "\r\n\r\n", 4)) {
        // On loopback a request arrives in one piece; its end is all that is looked at.
        send(c->fd, SWITCHING, sizeof SWITCHING - 1, MSG_NOSIGNAL);
        snprintf(c->to, sizeof c->to, "c%d", open_count);
        snprintf(c->session_id, sizeof c->session_id, "127.0.0.1:9000_%s_20201204191140123", c->to);
        c->index = open_count;
        open_[open_count++] = c;
    }
}

static void accept_some(void) {
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        if (fd >= MOST_FDS) {
            close(fd);
            return;
        }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->index = -1;
        by_fd[fd] = c;
        watch(fd, EPOLL_CTL_ADD, EPOLLIN);
    }
}

// A command is kept for main() to carry out: it takes turns of the loop itself.
static char command[256];

static void on_control(void) {
    ssize_t n = read(control, command, sizeof command - 1);
    if (n <= 0)
        exit(0);
    command[n] = 0;
}

static void turn(int timeout_ms) {
    static struct epoll_event events[1024];
    int n = epoll_wait(epoll, events, 1024, timeout_ms);
    for (int i = 0; i < n; i++) {
        int fd = events[i].data.fd;
        if (fd == listener) {
            accept_some();
        } else if (fd == control_listener) {
            control = accept4(control_listener, NULL, NULL, SOCK_CLOEXEC);
            watch(control, EPOLL_CTL_ADD, EPOLLIN);
        } else if (fd == control) {
            on_control();
        } else {
            if (by_fd[fd] && events[i].events & EPOLLOUT && by_fd[fd]->unsent_size)
                send_unsent(by_fd[fd]);
            if (by_fd[fd] && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                on_readable(by_fd[fd]);
        }
    }
}

static void send_numbered(struct connection *c, uint64_t number) {
    char frame[PAYLOAD + FRAME_HEADER_MAX];
    send_frame(c, frame, build(c, number, frame));
}

static uint64_t fan(uint64_t messages) {
    uint64_t sent = 0;
    for (uint64_t i = 0; i < messages; i++) {
        for (int j = 0; j < open_count; j++, sent++)
            send_numbered(open_[j], i);
        turn(0);
    }
    return sent;
}

static uint64_t uni(uint64_t messages, uint64_t batch) {
    for (uint64_t i = 0; i < messages && open_count; i++) {
        send_numbered(open_[rand() % open_count], i);
        if (i % batch == batch - 1)
            turn(0);
    }
    return messages;
}

static uint64_t burst(uint64_t messages, uint64_t in_a_row) {
    uint64_t sent = 0;
    while (sent < messages && open_count) {
        for (int j = 0; j < open_count; j++)
            for (uint64_t k = 0; k < in_a_row; k++)
                send_numbered(open_[j], sent++);
        turn(0);
    }
    return sent;
}

static double seconds(struct timeval t) { return (double)t.tv_sec + (double)t.tv_usec * 1e-6; }

static void obey(const char *line) {
    char word[32] = "";
    unsigned long a = 0, b = 1, sent = 0;
    sscanf(line, "%31s %lu %lu", word, &a, &b);
    if (!b)
        b = 1;
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    double start = now_s();
    if (!strcmp(word, "fan"))
        sent = fan(a);
    else if (!strcmp(word, "uni"))
        sent = uni(a, b);
    else if (!strcmp(word, "burst"))
        sent = burst(a, b);
    else if (!strcmp(word, "quit"))
        exit(0);
    double end = now_s();
    getrusage(RUSAGE_SELF, &after);
    size_t backlog = 0;
    for (int i = 0; i < open_count; i++)
        backlog += open_[i]->unsent_size;
    dprintf(control,
            "{\"sent\":%lu,\"start_s\":%.6f,\"end_s\":%.6f,\"user_s\":%.6f,\"system_s\":%.6f,\"connections\":%d,"
            "\"inbound\":%lu,\"backlog\":%zu,\"short_sends\":%lu}\n",
            sent, start, end, seconds(after.ru_utime) - seconds(before.ru_utime),
            seconds(after.ru_stime) - seconds(before.ru_stime), open_count, inbound, backlog, short_sends);
}

static int listen_on(int port, int backlog) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, backlog)) {
        perror("csrv: listen");
        exit(1);
    }
    watch(fd, EPOLL_CTL_ADD, EPOLLIN);
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "csrv PORT CONTROL_PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    listener = listen_on(atoi(argv[1]), 4096);
    control_listener = listen_on(atoi(argv[2]), 8);
    for (;;) {
        turn(1000);
        if (command[0])
            obey(command);
        command[0] = 0;
    }
}
