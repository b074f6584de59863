// Search kernels: distances, exact scans and HNSW traversal over flat arrays.
//
// One C ABI function call answers a whole search: every query against every source (graph segments and exact
// ranges), with one bounded top-k per query, so that the caller crosses into C once and without the interpreter
// lock.  Nothing here allocates for the caller, keeps pointers after a call, or knows ids and metadata; building
// graphs is hnswlib's work.
//
// One binary serves every CPU of an architecture: the distance loops exist in variants chosen at load.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace {

// ---------------------------------------------------------------------------------------------- distances

// Computes out[i] = f(query, base + rows[i] * dimension); f is the dot product or the squared euclidean distance.
using Gather = void (*)(const float* query, const float* base, size_t dimension, const uint32_t* rows, size_t count,
                        float* out);

inline void prefetch_row(const float* row, size_t dimension) {
  const char* at = reinterpret_cast<const char*>(row);
  const char* end = at + std::min<size_t>(dimension * sizeof(float), 4096);
  for (; at < end; at += 64) __builtin_prefetch(at, 0, 3);
}

template <bool kDot>
void gather_generic(const float* query, const float* base, size_t dimension, const uint32_t* rows, size_t count,
                    float* out) {
  for (size_t i = 0; i < count; ++i) {
    if (i + 1 < count) prefetch_row(base + size_t(rows[i + 1]) * dimension, dimension);
    const float* row = base + size_t(rows[i]) * dimension;
    float lanes[8] = {0};
    size_t j = 0;
    for (; j + 8 <= dimension; j += 8) {
      for (size_t l = 0; l < 8; ++l) {
        float a = query[j + l], b = row[j + l];
        lanes[l] += kDot ? a * b : (a - b) * (a - b);
      }
    }
    float sum = ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    for (; j < dimension; ++j) sum += kDot ? query[j] * row[j] : (query[j] - row[j]) * (query[j] - row[j]);
    out[i] = sum;
  }
}

#if defined(__x86_64__)
template <bool kDot>
__attribute__((target("avx2,fma"))) void gather_avx2(const float* query, const float* base, size_t dimension,
                                                     const uint32_t* rows, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) {
    if (i + 1 < count) prefetch_row(base + size_t(rows[i + 1]) * dimension, dimension);
    const float* row = base + size_t(rows[i]) * dimension;
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    size_t j = 0;
    for (; j + 32 <= dimension; j += 32) {
      for (size_t l = 0; l < 4; ++l) {
        __m256 a = _mm256_loadu_ps(query + j + 8 * l), b = _mm256_loadu_ps(row + j + 8 * l);
        if (!kDot) { a = _mm256_sub_ps(a, b); b = a; }
        sums[l] = _mm256_fmadd_ps(a, b, sums[l]);
      }
    }
    for (; j + 8 <= dimension; j += 8) {
      __m256 a = _mm256_loadu_ps(query + j), b = _mm256_loadu_ps(row + j);
      if (!kDot) { a = _mm256_sub_ps(a, b); b = a; }
      sums[0] = _mm256_fmadd_ps(a, b, sums[0]);
    }
    __m256 all = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    half = _mm_add_ss(half, _mm_movehdup_ps(half));
    float sum = _mm_cvtss_f32(half);
    for (; j < dimension; ++j) sum += kDot ? query[j] * row[j] : (query[j] - row[j]) * (query[j] - row[j]);
    out[i] = sum;
  }
}

template <bool kDot>
__attribute__((target("avx512f"))) void gather_avx512(const float* query, const float* base, size_t dimension,
                                                      const uint32_t* rows, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) {
    if (i + 1 < count) prefetch_row(base + size_t(rows[i + 1]) * dimension, dimension);
    const float* row = base + size_t(rows[i]) * dimension;
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t j = 0;
    for (; j + 64 <= dimension; j += 64) {
      for (size_t l = 0; l < 4; ++l) {
        __m512 a = _mm512_loadu_ps(query + j + 16 * l), b = _mm512_loadu_ps(row + j + 16 * l);
        if (!kDot) { a = _mm512_sub_ps(a, b); b = a; }
        sums[l] = _mm512_fmadd_ps(a, b, sums[l]);
      }
    }
    for (; j < dimension; j += 16) {
      size_t left = dimension - j;
      __mmask16 mask = left >= 16 ? __mmask16(0xffff) : __mmask16((1u << left) - 1);
      __m512 a = _mm512_maskz_loadu_ps(mask, query + j), b = _mm512_maskz_loadu_ps(mask, row + j);
      if (!kDot) { a = _mm512_sub_ps(a, b); b = a; }
      sums[0] = _mm512_fmadd_ps(a, b, sums[0]);
    }
    out[i] = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
  }
}
#endif

// Computes out[i] = dot product of codes; `stride` is a multiple of 64, the bytes past the dimension are zero.
using CodeGather = void (*)(const int8_t* query, const int8_t* base, size_t stride, const uint32_t* rows, size_t count,
                            int32_t* out);

inline void prefetch_codes(const int8_t* row, size_t stride) {
  for (size_t j = 0; j < std::min<size_t>(stride, 2048); j += 64) __builtin_prefetch(row + j, 0, 3);
}

void codes_generic(const int8_t* query, const int8_t* base, size_t stride, const uint32_t* rows, size_t count,
                   int32_t* out) {
  for (size_t i = 0; i < count; ++i) {
    const int8_t* row = base + size_t(rows[i]) * stride;
    int32_t sum = 0;
    for (size_t j = 0; j < stride; ++j) sum += int32_t(query[j]) * row[j];
    out[i] = sum;
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void codes_avx2(const int8_t* query, const int8_t* base, size_t stride,
                                                const uint32_t* rows, size_t count, int32_t* out) {
  for (size_t i = 0; i < count; ++i) {
    const int8_t* row = base + size_t(rows[i]) * stride;
    __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t j = 0; j < stride; j += 32) {
      for (size_t l = 0; l < 2; ++l) {
        __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(query + j + 16 * l)));
        __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + j + 16 * l)));
        sums[l] = _mm256_add_epi32(sums[l], _mm256_madd_epi16(a, b));
      }
    }
    __m256i all = _mm256_add_epi32(sums[0], sums[1]);
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    out[i] = _mm_cvtsi128_si32(half);
  }
}

// vpdpbusd multiplies unsigned by signed: 128 is added to each code of a row and its share taken off again.
__attribute__((target("avx512f,avx512bw,avx512vnni"))) void codes_vnni(const int8_t* query, const int8_t* base,
                                                                       size_t stride, const uint32_t* rows,
                                                                       size_t count, int32_t* out) {
  const __m512i offset = _mm512_set1_epi8(char(0x80));
  __m512i extra = _mm512_setzero_si512();
  for (size_t j = 0; j < stride; j += 64) extra = _mm512_dpbusd_epi32(extra, offset, _mm512_loadu_si512(query + j));
  for (size_t i = 0; i < count; ++i) {
    const int8_t* row = base + size_t(rows[i]) * stride;
    __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    size_t j = 0;
    for (; j + 128 <= stride; j += 128) {
      for (size_t l = 0; l < 2; ++l) {
        __m512i codes = _mm512_xor_si512(_mm512_loadu_si512(row + j + 64 * l), offset);
        sums[l] = _mm512_dpbusd_epi32(sums[l], codes, _mm512_loadu_si512(query + j + 64 * l));
      }
    }
    if (j < stride) {
      __m512i codes = _mm512_xor_si512(_mm512_loadu_si512(row + j), offset);
      sums[0] = _mm512_dpbusd_epi32(sums[0], codes, _mm512_loadu_si512(query + j));
    }
    out[i] = _mm512_reduce_add_epi32(_mm512_sub_epi32(_mm512_add_epi32(sums[0], sums[1]), extra));
  }
}
#endif

struct Variant {
  const char* name;
  Gather dot;
  Gather squared;
  CodeGather codes;
};

const Variant kGeneric = {"generic", gather_generic<true>, gather_generic<false>, codes_generic};
#if defined(__x86_64__)
const Variant kAvx2 = {"avx2", gather_avx2<true>, gather_avx2<false>, codes_avx2};
const Variant kAvx512 = {"avx512", gather_avx512<true>, gather_avx512<false>, codes_avx2};
const Variant kVnni = {"avx512vnni", gather_avx512<true>, gather_avx512<false>, codes_vnni};

bool has_avx512() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx2"); }
bool has_vnni() {
  return has_avx512() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
}
#endif

const Variant* best_variant() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (has_vnni()) return &kVnni;
  if (has_avx512()) return &kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kAvx2;
#endif
  return &kGeneric;
}

const Variant* variant = best_variant();

enum Metric : uint32_t { kCosine = 0, kEuclidean = 1, kDot = 2 };

}  // namespace

// -------------------------------------------------------------------------------------------------- sources

// Mirrored by `Source` in kernels.py.  Row numbers are local to a source; bit r of a bitmap is row r.
struct LhSource {
  const float* vectors;           // [rows, dimension]
  const float* inverse_norms;     // [rows], cosine only
  const uint64_t* dead;           // bitmap or null
  const uint64_t* allowed;        // bitmap or null
  const uint32_t* links;          // [rows, 1 + 2m]: count, then neighbours; null for an exact source
  const uint32_t* upper_offsets;  // [rows + 1]: first upper block of a row; a row has as many as it has levels
  const uint32_t* upper_links;    // [blocks, 1 + m]
  const uint32_t* stragglers;     // rows that the graph does not find
  const int8_t* codes;            // [rows, dimension rounded up to 64] or null: vectors in 8 bits, to walk by
  const float* code_terms;        // [rows, 2]: what a code's dot product is worth, and its squared norm
  uint64_t visits_max;            // distances after which the graph gives up for an exact scan
  uint64_t matched;               // live and allowed rows
  uint32_t rows;
  uint32_t straggler_count;
  uint32_t m;
  uint32_t entry;
  int32_t level_max;
  uint32_t ef;
};

namespace {

inline bool bit(const uint64_t* bits, uint32_t row) { return bits[row >> 6] >> (row & 63) & 1; }

inline bool admits(const LhSource& source, uint32_t row) {
  return !(source.dead && bit(source.dead, row)) && (!source.allowed || bit(source.allowed, row));
}

struct Near {
  float distance;
  uint32_t row;
};

inline bool operator<(const Near& a, const Near& b) {
  return a.distance < b.distance || (a.distance == b.distance && a.row < b.row);
}

// The best `limit` of what was offered, sorted.
template <typename T>
class Best {
 public:
  void reset(size_t limit) {
    limit_ = limit;
    size_ = 0;
    if (items_.size() < limit + 1) items_.resize(limit + 1);
  }
  bool full() const { return size_ == limit_; }
  size_t size() const { return size_; }
  float worst() const { return items_[size_ - 1].distance; }
  T& operator[](size_t i) { return items_[i]; }
  // The position taken, or `limit` when it was not good enough.
  size_t offer(const T& item) {
    if (size_ == limit_ && !(item < items_[size_ - 1])) return limit_;
    T* begin = items_.data();
    T* at = std::upper_bound(begin, begin + size_, item);
    size_t moved = size_t(begin + size_ - at) - (size_ == limit_ ? 1 : 0);
    std::memmove(static_cast<void*>(at + 1), at, moved * sizeof(T));
    *at = item;
    if (size_ < limit_) ++size_;
    return size_t(at - begin);
  }

 private:
  std::vector<T> items_;
  size_t limit_ = 0;
  size_t size_ = 0;
};

struct Found {
  float distance;
  uint32_t source;
  uint32_t row;
};

inline bool operator<(const Found& a, const Found& b) {
  if (a.distance != b.distance) return a.distance < b.distance;
  return a.source != b.source ? a.source < b.source : a.row < b.row;
}

struct Candidate {
  float distance;
  uint32_t row;
  bool expanded;
};

inline bool operator<(const Candidate& a, const Candidate& b) { return a.distance < b.distance; }

constexpr size_t kBlock = 64;

// What one thread reuses between searches.
struct Scratch {
  std::vector<uint64_t> seen;      // bitmap; all zero between searches
  std::vector<uint32_t> touched;   // rows whose bit is set
  std::vector<uint32_t> fresh;
  std::vector<float> distances;
  std::vector<int32_t> dots;
  std::vector<int8_t> query;       // in 8 bits
  std::vector<uint32_t> kept;
  std::vector<float> measured;
  std::vector<Near> frontier;      // a min-heap
  Best<Candidate> pool;
  Best<Near> results;

  void prepare(const LhSource& source) {
    size_t words = (size_t(source.rows) + 63) / 64;
    if (seen.size() < words) seen.resize(words, 0);
    size_t fan = 2 * size_t(source.m) + 1;
    if (fresh.size() < fan) { fresh.resize(fan); distances.resize(fan); dots.resize(fan); }
  }
  bool see(uint32_t row) {
    uint64_t& word = seen[row >> 6];
    uint64_t mask = uint64_t(1) << (row & 63);
    if (word & mask) return false;
    touched.push_back(row);
    word |= mask;
    return true;
  }
  void forget() {
    for (uint32_t row : touched) seen[row >> 6] = 0;
    touched.clear();
  }
};

thread_local Scratch scratch;

// A query against one source.
class Search {
 public:
  Search(const LhSource& source, const float* query, size_t dimension, Metric metric)
      : source_(source), query_(query), dimension_(dimension), metric_(metric),
        gather_(metric == kEuclidean ? variant->squared : variant->dot) {}

  uint64_t visits = 0;

  void measure(const uint32_t* rows, size_t count, float* out) {
    visits += count;
    gather_(query_, source_.vectors, dimension_, rows, count, out);
    for (size_t i = 0; i < count; ++i) {
      float value = out[i];
      if (metric_ == kCosine) value = 1.0f - value * source_.inverse_norms[rows[i]];
      else if (metric_ == kDot) value = -value;
      // Overflow is far away, and a NaN would break every comparison below.
      if (!(value < FLT_MAX)) value = FLT_MAX;
      if (value < -FLT_MAX) value = -FLT_MAX;
      out[i] = value;
    }
  }

  float measure(uint32_t row) {
    float out;
    measure(&row, 1, &out);
    return out;
  }

  // Distances to walk by: from codes where there are some, a quarter of the memory traffic.
  void approach(const uint32_t* rows, size_t count, float* out) {
    if (!source_.codes) return measure(rows, count, out);
    visits += count;
    variant->codes(scratch.query.data(), source_.codes, stride_, rows, count, scratch.dots.data());
    for (size_t i = 0; i < count; ++i) {
      const float* terms = source_.code_terms + 2 * size_t(rows[i]);
      float dot = float(scratch.dots[i]) * query_scale_ * terms[0];
      out[i] = metric_ == kEuclidean ? terms[1] - 2.0f * dot : -dot;
    }
  }

  // Rounds the query to 8 bits; what all rows have in common is left out of the distances to walk by.
  void round_query() {
    stride_ = (dimension_ + 63) / 64 * 64;
    if (scratch.query.size() < stride_) scratch.query.resize(stride_);
    float largest = 0;
    for (size_t j = 0; j < dimension_; ++j) largest = std::max(largest, std::fabs(query_[j]));
    query_scale_ = largest / 127.0f;
    float inverse = query_scale_ > 0 ? 1.0f / query_scale_ : 0.0f;
    if (!(inverse < FLT_MAX)) inverse = 0;
    for (size_t j = 0; j < dimension_; ++j) scratch.query[j] = int8_t(std::lrintf(query_[j] * inverse));
    std::fill(scratch.query.begin() + dimension_, scratch.query.begin() + stride_, int8_t(0));
  }

  // The nearest entry to layer 0.
  Near descend() {
    Near best{0, source_.entry};
    approach(&best.row, 1, &best.distance);
    size_t stride = 1 + source_.m;
    for (int level = source_.level_max; level > 0; --level) {
      for (bool moved = true; moved;) {
        moved = false;
        const uint32_t* links = source_.upper_links + (size_t(source_.upper_offsets[best.row]) + level - 1) * stride;
        size_t count = links[0];
        approach(links + 1, count, scratch.distances.data());
        for (size_t i = 0; i < count; ++i) {
          if (scratch.distances[i] < best.distance) {
            best = {scratch.distances[i], links[1 + i]};
            moved = true;
          }
        }
      }
    }
    return best;
  }

  // Neighbours of `row` not seen before, with their distances, in scratch.
  size_t expand(uint32_t row) {
    const uint32_t* links = source_.links + size_t(row) * (1 + 2 * size_t(source_.m));
    size_t count = links[0], fresh = 0;
    for (size_t i = 1; i <= count; ++i) {
      if (!scratch.see(links[i])) continue;
      scratch.fresh[fresh++] = links[i];
      if (source_.codes) {
        prefetch_codes(source_.codes + size_t(links[i]) * stride_, stride_);
        __builtin_prefetch(source_.code_terms + 2 * size_t(links[i]));
      }
    }
    if (fresh) approach(scratch.fresh.data(), fresh, scratch.distances.data());
    return fresh;
  }

  void prefetch_links(uint32_t row) {
    const char* at = reinterpret_cast<const char*>(source_.links + size_t(row) * (1 + 2 * size_t(source_.m)));
    __builtin_prefetch(at);
    __builtin_prefetch(at + 64);
    __builtin_prefetch(at + 128);
  }

  // Every row is admitted: one sorted pool is both frontier and result.
  void walk(size_t ef) {
    Best<Candidate>& pool = scratch.pool;
    pool.reset(ef);
    Near entry = descend();
    scratch.see(entry.row);
    pool.offer({entry.distance, entry.row, false});
    for (size_t at = 0; at < pool.size();) {
      if (pool[at].expanded) { ++at; continue; }
      pool[at].expanded = true;
      size_t fresh = expand(pool[at].row), lowest = ef;
      for (size_t i = 0; i < fresh; ++i) {
        lowest = std::min(lowest, pool.offer({scratch.distances[i], scratch.fresh[i], false}));
      }
      at = lowest <= at ? lowest : at + 1;
      if (at < pool.size()) prefetch_links(pool[at].row);
    }
  }

  // Rows that are not admitted are crossed but not kept.  False when it took more than visits_max.
  bool walk_filtered(size_t ef) {
    Best<Near>& results = scratch.results;
    std::vector<Near>& frontier = scratch.frontier;
    auto farther = [](const Near& a, const Near& b) { return b < a; };
    results.reset(ef);
    frontier.clear();
    Near entry = descend();
    scratch.see(entry.row);
    frontier.push_back(entry);
    if (admits(source_, entry.row)) results.offer(entry);
    while (!frontier.empty()) {
      std::pop_heap(frontier.begin(), frontier.end(), farther);
      Near nearest = frontier.back();
      frontier.pop_back();
      if (results.full() && nearest.distance > results.worst()) break;
      if (visits > source_.visits_max) return false;
      size_t fresh = expand(nearest.row);
      for (size_t i = 0; i < fresh; ++i) {
        Near next{scratch.distances[i], scratch.fresh[i]};
        if (results.full() && !(next.distance < results.worst())) continue;
        frontier.push_back(next);
        std::push_heap(frontier.begin(), frontier.end(), farther);
        if (admits(source_, next.row)) results.offer(next);
      }
      if (!frontier.empty()) prefetch_links(frontier.front().row);
    }
    return true;
  }

  // Graph, then the rows it is known to miss.  False when an exact scan has to answer instead.
  template <typename Take>
  bool graph(size_t ef, Take take) {
    scratch.prepare(source_);
    if (source_.codes) round_query();
    bool filtered = source_.dead || source_.allowed;
    bool complete = true;
    size_t found = 0;
    if (!filtered) {
      walk(ef);
      found = scratch.pool.size();
    } else {
      complete = walk_filtered(ef);
      found = scratch.results.size();
    }
    if (complete) {
      scratch.kept.resize(found);
      scratch.measured.resize(found);
      for (size_t i = 0; i < found; ++i) {
        scratch.kept[i] = filtered ? scratch.results[i].row : scratch.pool[i].row;
        if (!source_.codes) scratch.measured[i] = filtered ? scratch.results[i].distance : scratch.pool[i].distance;
      }
      if (source_.codes && found) measure(scratch.kept.data(), found, scratch.measured.data());
      for (size_t i = 0; i < found; ++i) take(Near{scratch.measured[i], scratch.kept[i]});
      for (size_t i = 0; i < source_.straggler_count; ++i) {
        uint32_t row = source_.stragglers[i];
        if (!admits(source_, row) || !scratch.see(row)) continue;
        take(Near{measure(row), row});
        ++found;
      }
    }
    scratch.forget();
    return complete && found >= std::min<uint64_t>(ef, source_.matched);
  }

  // The admitted rows in [begin, end), exactly.
  template <typename Take>
  void scan(uint32_t begin, uint32_t end, Take take) {
    uint32_t rows[kBlock];
    float distances[kBlock];
    for (uint32_t word = begin / 64; word * 64 < end; ++word) {
      uint64_t bits = ~uint64_t(0);
      if (source_.dead) bits &= ~source_.dead[word];
      if (source_.allowed) bits &= source_.allowed[word];
      uint32_t first = word * 64;
      if (first < begin) bits &= ~uint64_t(0) << (begin - first);
      if (end - first < 64) bits &= (uint64_t(1) << (end - first)) - 1;
      size_t count = 0;
      for (; bits; bits &= bits - 1) rows[count++] = first + uint32_t(__builtin_ctzll(bits));
      if (!count) continue;
      measure(rows, count, distances);
      for (size_t i = 0; i < count; ++i) take(Near{distances[i], rows[i]});
    }
  }

 private:
  const LhSource& source_;
  const float* query_;
  size_t dimension_;
  Metric metric_;
  Gather gather_;
  size_t stride_ = 0;
  float query_scale_ = 0;
};

constexpr uint32_t kScanRows = 256;  // 256 rows of 384 floats stay in a second-level cache between queries

void normalise(const float* query, size_t dimension, float* out) {
  double sum = 0;
  for (size_t j = 0; j < dimension; ++j) sum += double(query[j]) * query[j];
  double inverse = sum > 0 ? 1.0 / std::sqrt(sum) : 0;
  for (size_t j = 0; j < dimension; ++j) out[j] = float(query[j] * inverse);
}

float reported(float distance, Metric metric) {
  if (metric == kEuclidean) return std::sqrt(std::max(distance, 0.0f));
  if (metric == kCosine) return std::min(std::max(distance, 0.0f), 2.0f);
  return distance == 0 ? 0.0f : distance;  // no negative zero
}

constexpr uint32_t kGroup = 64;  // queries answered together: they share a scan's rows, and bound what a thread keeps

void search_group(const LhSource* sources, uint32_t source_count, Metric metric, uint32_t dimension,
                  const float* queries, uint32_t query_count, uint32_t k, float* out_distances, uint64_t* out_hits,
                  uint32_t* counts, uint64_t* totals) {
  thread_local std::vector<float> unit;
  thread_local std::vector<Best<Found>> best;
  if (best.size() < query_count) best.resize(query_count);
  for (uint32_t q = 0; q < query_count; ++q) best[q].reset(k);
  if (metric == kCosine) {
    unit.resize(size_t(query_count) * dimension);
    for (uint32_t q = 0; q < query_count; ++q) {
      normalise(queries + size_t(q) * dimension, dimension, unit.data() + size_t(q) * dimension);
    }
    queries = unit.data();
  }
  for (uint32_t s = 0; s < source_count; ++s) {
    const LhSource& source = sources[s];
    auto scan = [&](uint32_t q, uint32_t begin, uint32_t end) {
      Search search(source, queries + size_t(q) * dimension, dimension, metric);
      search.scan(begin, end, [&](Near near) { best[q].offer({near.distance, s, near.row}); });
      totals[0] += search.visits;
    };
    if (source.links) {
      for (uint32_t q = 0; q < query_count; ++q) {
        Search search(source, queries + size_t(q) * dimension, dimension, metric);
        size_t ef = std::max(source.ef, k);
        // What the graph offers counts only when it is complete, so it is kept apart until then.
        thread_local std::vector<Near> offered;
        offered.clear();
        bool complete = search.graph(ef, [&](Near near) { offered.push_back(near); });
        totals[0] += search.visits;
        if (complete) {
          for (const Near& near : offered) best[q].offer({near.distance, s, near.row});
        } else {
          ++totals[1];
          scan(q, 0, source.rows);
        }
      }
    } else {
      for (uint32_t begin = 0; begin < source.rows; begin += kScanRows) {
        uint32_t end = std::min(source.rows, begin + kScanRows);
        for (uint32_t q = 0; q < query_count; ++q) scan(q, begin, end);
      }
    }
  }
  for (uint32_t q = 0; q < query_count; ++q) {
    Best<Found>& found = best[q];
    counts[q] = uint32_t(found.size());
    for (size_t i = 0; i < found.size(); ++i) {
      out_distances[size_t(q) * k + i] = reported(found[i].distance, metric);
      out_hits[size_t(q) * k + i] = uint64_t(found[i].source) << 32 | found[i].row;
    }
  }
}

}  // namespace

extern "C" {

int32_t lh_abi(void) { return 2; }

uint64_t lh_source_bytes(void) { return sizeof(LhSource); }

const char* lh_variant(void) { return variant->name; }

// Chooses a variant by name, for tests and measurements; 0 when this CPU has it.
int32_t lh_use_variant(const char* name) {
  if (!std::strcmp(name, "generic")) { variant = &kGeneric; return 0; }
#if defined(__x86_64__)
  if (!std::strcmp(name, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    variant = &kAvx2;
    return 0;
  }
  if (!std::strcmp(name, "avx512") && has_avx512()) { variant = &kAvx512; return 0; }
  if (!std::strcmp(name, "avx512vnni") && has_vnni()) { variant = &kVnni; return 0; }
#endif
  return -1;
}

// Answers `query_count` queries over all sources.  For query q: counts[q] hits at out_distances[q*k …], nearest
// first, and out_hits as source << 32 | row.  totals[0] += distances computed, totals[1] += graph searches that
// gave up for an exact scan.  0, or -1 when memory ran out.
int32_t lh_search(const LhSource* sources, uint32_t source_count, uint32_t metric, uint32_t dimension,
                  const float* queries, uint32_t query_count, uint32_t k, float* out_distances, uint64_t* out_hits,
                  uint32_t* counts, uint64_t* totals) try {
  for (uint32_t first = 0; first < query_count; first += kGroup) {
    search_group(sources, source_count, Metric(metric), dimension, queries + size_t(first) * dimension,
                 std::min(kGroup, query_count - first), k, out_distances + size_t(first) * k,
                 out_hits + size_t(first) * k, counts + first, totals);
  }
  return 0;
} catch (const std::bad_alloc&) {
  scratch.forget();
  return -1;
}

// Searches the graph of `source` for each of the `count` rows in `rows`, at the source's ef, and sets missed[i]
// when the row was not among the results although it is nearer to itself than the farthest of them.
int32_t lh_probe(const LhSource* source, uint32_t metric_number, uint32_t dimension, const uint32_t* rows,
                 uint64_t count, uint32_t threads, uint8_t* missed) try {
  Metric metric = Metric(metric_number);
  std::atomic<uint64_t> next{0};
  std::atomic<int32_t> status{0};
  auto work = [&]() {
    try {
      std::vector<float> query(dimension);
      for (uint64_t start; (start = next.fetch_add(256)) < count;) {
        for (uint64_t i = start; i < std::min(count, start + 256); ++i) {
          const float* own = source->vectors + size_t(rows[i]) * dimension;
          if (metric == kCosine) normalise(own, dimension, query.data());
          else std::memcpy(query.data(), own, dimension * sizeof(float));
          Search search(*source, query.data(), dimension, metric);
          bool found = false;
          float farthest = -FLT_MAX;
          uint64_t taken = 0;
          search.graph(source->ef, [&](Near near) {
            found |= near.row == rows[i];
            farthest = std::max(farthest, near.distance);
            ++taken;
          });
          missed[i] = !found && (taken < source->ef || search.measure(rows[i]) < farthest);
        }
      }
    } catch (const std::bad_alloc&) {
      status = -1;
    }
  };
  std::vector<std::thread> pool;
  try {
    for (uint32_t t = 1; t < threads; ++t) pool.emplace_back(work);
  } catch (const std::system_error&) {
    // Fewer threads do the same work.
  }
  work();
  for (std::thread& thread : pool) thread.join();
  return status;
} catch (...) {
  return -1;
}

// Rounds `rows` vectors to 8 bits each, the largest component of a row to ±127, into codes[rows, stride] and
// terms[rows, 2].  `codes` is zero before.
void lh_round(const float* vectors, const float* inverse_norms, uint64_t rows, uint32_t dimension, int8_t* codes,
              float* terms) {
  size_t stride = (size_t(dimension) + 63) / 64 * 64;
  for (uint64_t r = 0; r < rows; ++r) {
    const float* row = vectors + size_t(r) * dimension;
    int8_t* code = codes + size_t(r) * stride;
    float largest = 0;
    for (size_t j = 0; j < dimension; ++j) largest = std::max(largest, std::fabs(row[j]));
    float scale = largest / 127.0f;
    float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    if (!(inverse < FLT_MAX)) inverse = 0;
    int64_t squares = 0;
    for (size_t j = 0; j < dimension; ++j) {
      int32_t value = int32_t(std::lrintf(row[j] * inverse));
      code[j] = int8_t(value);
      squares += value * value;
    }
    terms[2 * r] = inverse_norms ? scale * inverse_norms[r] : scale;
    terms[2 * r + 1] = float(double(squares) * scale * scale);
  }
}

// Gives memory that building has freed back to the operating system.
void lh_trim(void) {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // extern "C"
