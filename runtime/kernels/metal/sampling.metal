// The largest of many numbers: the k likeliest tokens, of which the first is the greedy choice.
//
// A threadgroup finds the k largest of BLOCK numbers; launched again on what all blocks found, it finds those of all.
// The greedy choice is k = 1. What is not a number counts as the least, as in router.metal; the host refuses it.

#include "numbers.h"

constant constexpr uint BLOCK = 4096;
constant constexpr uint OWN = BLOCK / THREADS;

// Host: struct "<3I".
struct Choice {
  uint count, k;
  uint first;  // 1: the numbers' ids are their places; 0: they are in `from_ids`
};

// Larger values first; of equal ones, the lower id.
inline bool before(Candidate a, Candidate b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }

// The first of all threads' candidates, in every thread. `found` has a place for each SIMD group.
inline Candidate first_of_all(Candidate own, threadgroup float* values, threadgroup uint* ids, Thread t) {
  const Candidate mine = first_of_group(own);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // what was found before has been read
  if (t.lane == 0) {
    values[t.group] = mine.value;
    ids[t.group] = mine.id;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  Candidate best = {values[0], ids[0]};
  for (uint g = 1; g < SIMD_GROUPS; ++g) {
    const Candidate other = {values[g], ids[g]};
    if (before(other, best)) best = other;
  }
  return best;
}

// Of each block of BLOCK numbers the k largest, largest first, ties to the lower id: values and ids [blocks, k]; places
// that a block has no numbers for get -infinity and the id 0xffffffff. from [count]; from_ids [count], unused at first.
// k is at most BLOCK. Grid: ceil(count / BLOCK) threadgroups of THREADS. Threadgroup memory: 64 bytes.
kernel void top_k(device const float* from [[buffer(0)]],
                  device const uint* from_ids [[buffer(1)]],
                  device float* values [[buffer(2)]],
                  device uint* ids [[buffer(3)]],
                  constant Choice& choice [[buffer(4)]],
                  uint block [[threadgroup_position_in_grid]],
                  uint lane [[thread_index_in_simdgroup]],
                  uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup float found_values[SIMD_GROUPS];
  threadgroup uint found_ids[SIMD_GROUPS];
  const Thread t = {lane, group};
  Candidate own[OWN];
  for (uint i = 0; i < OWN; ++i) {
    const uint place = block * BLOCK + i * THREADS + t.index();
    const float value = place < choice.count ? from[place] : -INFINITY;
    own[i].value = isnan(value) ? -INFINITY : value;
    own[i].id = place >= choice.count ? NOBODY : choice.first ? place : from_ids[place];
  }
  for (uint k = 0; k < choice.k; ++k) {
    Candidate best = own[0];
    for (uint i = 1; i < OWN; ++i)
      if (before(own[i], best)) best = own[i];
    const Candidate chosen = first_of_all(best, found_values, found_ids, t);
    for (uint i = 0; i < OWN; ++i)
      if (own[i].id == chosen.id) own[i] = {-INFINITY, NOBODY};
    if (t.index() == 0) {
      values[block * choice.k + k] = chosen.value;
      ids[block * choice.k + k] = chosen.id;
    }
  }
}
