// RFC 6455 section 5.2 frames, as much of them as load tools need.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum opcode { OP_TEXT = 1, OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10 };

#define FRAME_HEADER_MAX 14

struct frame_header {
    int opcode;
    bool final;
    bool masked;
    int size;        // bytes of the header itself, mask included
    uint64_t length; // bytes of the payload
    uint8_t mask[4];
};

// Read the header at `p`; false when `n` bytes do not hold all of it.
bool frame_read_header(const uint8_t *p, size_t n, struct frame_header *h);

// Write a masked (client) frame to `out`, which has room for FRAME_HEADER_MAX + length bytes, length < 64 KiB.
// Returns its size.
size_t frame_write_masked(uint8_t *out, enum opcode op, const char *payload, size_t length);
