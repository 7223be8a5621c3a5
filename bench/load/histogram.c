#include "histogram.h"

#include <string.h>

void histogram_clear(struct histogram *h) { memset(h, 0, sizeof *h); }

// Values below 64 have a bucket each; above, the 6 bits after the leading one choose it.
static int bucket_of(uint64_t ns) {
    if (ns < 64)
        return (int)ns;
    int exponent = 63 - __builtin_clzll(ns);
    int bucket = (exponent - 5) * 64 + (int)((ns >> (exponent - 6)) & 63);
    return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

static double middle_us(int bucket) {
    if (bucket < 64)
        return bucket / 1e3;
    int exponent = bucket / 64 + 5;
    double step = (double)(1ull << (exponent - 6));
    double low = (double)(1ull << exponent) + (bucket & 63) * step;
    return (low + step / 2) / 1e3;
}

void histogram_add(struct histogram *h, uint64_t ns) {
    h->count++;
    if (ns > h->max)
        h->max = ns;
    h->buckets[bucket_of(ns)]++;
}

double histogram_us(const struct histogram *h, double p) {
    if (!h->count)
        return 0;
    uint64_t rank = (uint64_t)(p * (double)(h->count - 1));
    uint64_t below = 0;
    for (int b = 0; b < HISTOGRAM_BUCKETS; b++) {
        below += h->buckets[b];
        if (below > rank)
            return middle_us(b);
    }
    return (double)h->max / 1e3;
}
