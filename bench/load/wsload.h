// What the three parts of wsload share: options (wsload.c), connections (clients.c), received frames (receive.c).
#pragma once
#include "frame.h"
#include "histogram.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define MOST_CLIENTS 60000
#define MOST_PORTS 8
#define SEQUENCE_WINDOW 4096
#define MOST_HEADERS 16
#define TEMPLATE_ROOM (1 << 16)

struct options {
    int port;
    int other_ports[MOST_PORTS]; // where a client goes that had a session and lost it
    int other_port_count;
    double jitter_s;             // it waits between 0 and this before it comes, and after what a refusal tells
    const char *path;
    const char *headers[MOST_HEADERS];
    int header_count;
    const char *first_frame;   // sent after the 101, or NULL
    char **tokens;             // lines of the token file
    int token_count;
    int handshakes;            // in flight at most
    int sources;               // source addresses to spread over
    bool ready_at_first_frame; // a client counts as connected at its first data frame
    const char *mark;          // what makes a message, or NULL: each frame is one
    const char *latency_key;   // a decimal time stamp follows it, or NULL
    const char *sequence_key;  // a number that grows by one a connection follows it, or NULL
    bool acks;                 // acknowledge business messages of the envelope protocol
    int nap_us;                // sleep between polls instead of blocking
    const char *upstream;      // frame template of the closed loop, or NULL
    int upstream_frames;       // frames a write
    FILE *sessions;            // where the first frames' sessionIds go, or NULL
    double end_s;              // monotonic second at which the process gives up
};

enum state { CONNECTING, HANDSHAKE, OPEN, CLOSED, WAITING };

struct client {
    int fd;
    enum state state;
    bool ready;
    bool had_session; // it comes back when it loses it
    double due_s;     // WAITING: when it comes
    uint64_t last_ns; // when its last message came
    char *rest; // the beginning of a frame whose end has not come yet
    size_t rest_size, rest_capacity;
    uint64_t got;            // messages since the last reset
    uint64_t up_sent;        // upstream frames in all
    uint32_t up_outstanding; // of the last write, not answered yet
    uint64_t first, highest; // sequence check: the first number and the highest so far ...
    uint8_t *seen;           // ... and which of the last SEQUENCE_WINDOW came: bit number % SEQUENCE_WINDOW
};

// Counted since the last reset, but `gaps`, `repeats` and `late`, which count from the start.
struct totals {
    uint64_t bytes, frames, messages, other, bad, ends, pings, reads, acked;
    uint64_t gaps, repeats, late;
    uint64_t silence_ns; // the longest between two messages of one client
    uint64_t lost, refused, refused_untold; // sessions; reconnects answered 503, and those without a Retry-After
    double first_s, last_s; // monotonic seconds of the first and the last read
    struct histogram latency;
};

extern struct options options;
extern struct totals totals;
extern volatile uint64_t *counter; // messages since the start, also for other processes

// clients.c
extern struct client *clients;
extern int client_count, open_count, ready_count, done_count, failed_count;
void clients_set_up(void);
void clients_connect(int count);
void clients_turn(int timeout_ms); // one turn of the event loop; exits when options.end_s has passed
void clients_wake(void); // those that are due come
void clients_watch_stdin(void);
void clients_close_all(void);
void client_send(struct client *c, enum opcode op, const char *payload, size_t size);
void client_send_raw(struct client *c, const uint8_t *frames, size_t size);
size_t expand(char *out, const char *text, int id, uint64_t sequence);

// receive.c
enum upstream_state { UP_OFF, UP_RUNNING, UP_ENDING };
extern enum upstream_state upstream_state;
void client_keep(struct client *c, const char *p, size_t n);
void receive_bytes(struct client *c, char *p, size_t n, uint64_t at_ns);
void upstream_send(struct client *c);
uint64_t sequence_gaps(void); // numbers that never came, over all connections
