// The shared counter file: 8 bytes that the receiver writes and a sender reads, both through mmap, so that the
// sender can bound what is in flight without a word between the two processes.
#pragma once
#include <stdint.h>

// Map the file at `path` (made if absent). Exits with a message if it cannot be opened.
volatile uint64_t *counter_open(const char *path);
