#include "frame.h"

#include <string.h>

bool frame_read_header(const uint8_t *p, size_t n, struct frame_header *h) {
    if (n < 2)
        return false;
    int code = p[1] & 127;
    int extra = code == 126 ? 2 : code == 127 ? 8 : 0;
    h->opcode = p[0] & 15;
    h->final = p[0] >> 7;
    h->masked = p[1] >> 7;
    h->size = 2 + extra + (h->masked ? 4 : 0);
    if (n < (size_t)h->size)
        return false;
    h->length = extra ? 0 : (uint64_t)code;
    for (int i = 0; i < extra; i++)
        h->length = h->length << 8 | p[2 + i];
    if (h->masked)
        memcpy(h->mask, p + 2 + extra, 4);
    return true;
}

size_t frame_write_masked(uint8_t *out, enum opcode op, const char *payload, size_t length) {
    // One fixed mask: the server has to undo it all the same, and no proxy is in the way (RFC 6455 section 10.3).
    static const uint8_t mask[4] = {0x12, 0x34, 0x56, 0x78};
    size_t size = 0;
    out[size++] = (uint8_t)(0x80 | op);
    if (length < 126) {
        out[size++] = (uint8_t)(0x80 | length);
    } else {
        out[size++] = 0x80 | 126;
        out[size++] = (uint8_t)(length >> 8);
        out[size++] = (uint8_t)length;
    }
    memcpy(out + size, mask, 4);
    size += 4;
    for (size_t i = 0; i < length; i++)
        out[size + i] = (uint8_t)payload[i] ^ mask[i & 3];
    return size + length;
}
