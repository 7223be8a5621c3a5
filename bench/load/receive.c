// Received bytes: frames out of bytes, messages out of frames, and what is counted, measured and answered.
#define _GNU_SOURCE
#include "wsload.h"

#include <stdlib.h>
#include <string.h>

#define ACKS_A_FRAME 512
#define ID_SIZE 32

enum upstream_state upstream_state;

// ---- acknowledgements: the ids of all messages of one read go out in one frame ----

static char ack_text[64 + ACKS_A_FRAME * (ID_SIZE + 3)];
static size_t ack_size;
static int ack_count;

static void acks_send(struct client *c) {
    if (!ack_count)
        return;
    memcpy(ack_text + ack_size - 1, "]}", 2); // over the last comma
    client_send(c, OP_TEXT, ack_text, ack_size + 1);
    totals.acked += (uint64_t)ack_count;
    ack_count = 0;
}

static void acks_add(struct client *c, const char *id) {
    static const char start[] = "{\"msgType\":2,\"messageIds\":[";
    if (!ack_count) {
        memcpy(ack_text, start, sizeof start - 1);
        ack_size = sizeof start - 1;
    }
    ack_text[ack_size++] = '"';
    memcpy(ack_text + ack_size, id, ID_SIZE);
    ack_size += ID_SIZE;
    memcpy(ack_text + ack_size, "\",", 2);
    ack_size += 2;
    if (++ack_count == ACKS_A_FRAME)
        acks_send(c);
}

// Whether an envelope is a business message. Its own msgType is the last one of the frame: only short fields follow.
static bool is_business(const char *p, size_t n) {
    static const char key[] = "\"msgType\":";
    size_t size = sizeof key - 1, farthest = 400;
    if (n < size + 2)
        return false;
    const char *stop = n > farthest ? p + n - farthest : p;
    for (const char *at = p + n - size - 2; at >= stop; at--)
        if (!memcmp(at, key, size))
            return at[size] == '1' && (at[size + 1] == '}' || at[size + 1] == ',');
    return false;
}

static const char *after(const char *p, size_t n, const char *key) {
    const char *at = memmem(p, n, key, strlen(key));
    return at ? at + strlen(key) : NULL;
}

static bool take_envelope(struct client *c, const char *p, size_t n) {
    if (!is_business(p, n))
        return false;
    const char *id = after(p, n, "\"messageId\":\"");
    if (!id || id + ID_SIZE >= p + n || id[ID_SIZE] != '"') {
        totals.bad++;
        return true;
    }
    acks_add(c, id);
    return true;
}

// ---- what a message carries ----

static uint64_t number_at(const char **at, const char *end) {
    uint64_t value = 0;
    while (*at < end && **at >= '0' && **at <= '9')
        value = value * 10 + (uint64_t)(*(*at)++ - '0');
    return value;
}

static void measure_latency(const char *p, size_t n, uint64_t at_ns) {
    const char *end = p + n, *at = p;
    while ((at = after(at, (size_t)(end - at), options.latency_key))) {
        uint64_t sent_ns = number_at(&at, end);
        histogram_add(&totals.latency, at_ns > sent_ns ? at_ns - sent_ns : 0);
    }
}

static bool came(const struct client *c, uint64_t number) {
    uint64_t at = number % SEQUENCE_WINDOW;
    return c->seen[at / 8] >> at % 8 & 1;
}

static void mark(struct client *c, uint64_t number, bool seen) {
    uint64_t at = number % SEQUENCE_WINDOW;
    c->seen[at / 8] = (uint8_t)((c->seen[at / 8] & ~(1 << at % 8)) | seen << at % 8);
}

// A number counts as a gap once it has left the window and has not come; until then it may still come late.
static void check_sequence(struct client *c, const char *p, size_t n) {
    const char *at = after(p, n, options.sequence_key);
    if (!at)
        return;
    uint64_t number = number_at(&at, p + n);
    if (!c->seen) { // numbers before the first one are not missed
        c->seen = calloc(1, SEQUENCE_WINDOW / 8);
        c->first = c->highest = number;
        mark(c, number, true);
    } else if (number > c->highest) {
        uint64_t skipped = number - c->highest > SEQUENCE_WINDOW ? number - c->highest - SEQUENCE_WINDOW : 0;
        totals.gaps += skipped;
        for (uint64_t k = c->highest + 1 + skipped; k <= number; k++) {
            if (k >= c->first + SEQUENCE_WINDOW && k - SEQUENCE_WINDOW <= c->highest)
                totals.gaps += !came(c, k);
            mark(c, k, k == number);
        }
        c->highest = number;
    } else if (number >= c->first && c->highest - number < SEQUENCE_WINDOW && !came(c, number)) {
        mark(c, number, true);
        totals.late++;
    } else if (number < c->first || c->highest - number >= SEQUENCE_WINDOW) {
        totals.late++; // too late to be told from a repeat
    } else {
        totals.repeats++;
    }
}

uint64_t sequence_gaps(void) {
    uint64_t gaps = totals.gaps;
    for (int i = 0; i < client_count; i++) {
        const struct client *c = &clients[i];
        uint64_t k = c->seen && c->highest >= c->first + SEQUENCE_WINDOW ? c->highest - SEQUENCE_WINDOW + 1 : c->first;
        for (; c->seen && k <= c->highest; k++)
            gaps += !came(c, k);
    }
    return gaps;
}

static void write_session(const struct client *c, const char *p, size_t n) {
    const char *id = after(p, n, "\"sessionId\":\"");
    const char *end = id ? memchr(id, '"', (size_t)(p + n - id)) : NULL;
    if (end) {
        fprintf(options.sessions, "%d %.*s\n", (int)(c - clients), (int)(end - id), id);
        fflush(options.sessions);
    }
}

static int count_messages(struct client *c, const char *p, size_t n) {
    if (options.acks)
        return take_envelope(c, p, n);
    if (!options.mark)
        return 1;
    int count = 0;
    const char *end = p + n, *at = p;
    while ((at = after(at, (size_t)(end - at), options.mark)))
        count++;
    return count;
}

static void upstream_answered(struct client *c, uint32_t answers) {
    c->up_outstanding = c->up_outstanding > answers ? c->up_outstanding - answers : 0;
    if (!c->up_outstanding && upstream_state == UP_RUNNING)
        upstream_send(c);
}

static void take_data(struct client *c, const char *p, size_t n, uint64_t at_ns) {
    if (!c->ready) {
        c->ready = true;
        ready_count++;
        done_count += options.ready_at_first_frame && !c->had_session;
        c->had_session = true;
        if (options.sessions)
            write_session(c, p, n);
    }
    totals.frames++;
    int count = count_messages(c, p, n);
    if (!count) {
        totals.other++;
        return;
    }
    totals.messages += (uint64_t)count;
    *counter += (uint64_t)count;
    c->got += (uint64_t)count;
    if (c->last_ns && at_ns - c->last_ns > totals.silence_ns)
        totals.silence_ns = at_ns - c->last_ns;
    c->last_ns = at_ns;
    if (options.latency_key)
        measure_latency(p, n, at_ns);
    if (options.sequence_key)
        check_sequence(c, p, n);
    if (upstream_state != UP_OFF && c->up_outstanding)
        upstream_answered(c, (uint32_t)count);
}

// ---- frames ----

static void take_frame(struct client *c, const struct frame_header *h, const char *p, uint64_t at_ns) {
    size_t n = (size_t)h->length;
    switch (h->opcode) {
    case OP_TEXT:
    case OP_BINARY:
        take_data(c, p, n, at_ns);
        break;
    case OP_PING:
        totals.pings++;
        client_send(c, OP_PONG, p, n > 125 ? 125 : n);
        break;
    case OP_CLOSE:
        if (totals.ends < 3)
            fprintf(stderr, "wsload: close frame %d %.*s\n", n >= 2 ? (uint8_t)p[0] << 8 | (uint8_t)p[1] : 0,
                    (int)(n > 2 ? n - 2 : 0), p + 2);
        break;
    case OP_PONG:
        break;
    default:
        totals.bad++;
    }
}

// Keep the beginning of what is not whole yet; `p` may lie in c->rest.
void client_keep(struct client *c, const char *p, size_t n) {
    if (!n) {
        free(c->rest);
        c->rest = NULL;
        c->rest_capacity = 0;
    } else if (c->rest_capacity < n) {
        char *fresh = malloc(n + 8192);
        memcpy(fresh, p, n);
        free(c->rest);
        c->rest = fresh;
        c->rest_capacity = n + 8192;
    } else {
        memmove(c->rest, p, n);
    }
    c->rest_size = n;
}

// Whole frames are taken where they lie (`p` may be c->rest); the beginning of the next one is kept.
void receive_bytes(struct client *c, char *p, size_t n, uint64_t at_ns) {
    struct frame_header h;
    while (frame_read_header((const uint8_t *)p, n, &h)) {
        if (h.masked || !h.final || h.length > 1u << 24)
            totals.bad++;
        if (n - (size_t)h.size < h.length)
            break;
        take_frame(c, &h, p + h.size, at_ns);
        p += h.size + h.length;
        n -= (size_t)h.size + h.length;
    }
    acks_send(c);
    client_keep(c, p, n);
}

void upstream_send(struct client *c) {
    static uint8_t frames[1 << 20];
    static char text[TEMPLATE_ROOM];
    size_t size = 0;
    for (int i = 0; i < options.upstream_frames && size + TEMPLATE_ROOM < sizeof frames; i++) {
        size_t n = expand(text, options.upstream, (int)(c - clients), ++c->up_sent);
        size += frame_write_masked(frames + size, OP_TEXT, text, n);
    }
    client_send_raw(c, frames, size);
    c->up_outstanding += (uint32_t)options.upstream_frames;
}
