// The place of the channels in a dense tensor.
#pragma once

#include <cstdint>

namespace sbnref {

// Statistics treat every dimension but the channels alike, so any dense tensor is (outer, channels, inner) in memory:
// rows of `inner` elements of one channel. With inner == 1 a row holds all channels.
struct Shape {
    int64_t outer, channels, inner;

    int64_t count() const { return outer * inner; }  // elements per channel
    int64_t size() const { return outer * channels * inner; }
};

}  // namespace sbnref
