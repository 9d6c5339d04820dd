// Ways to write launches, shared memory and variables. A string and comments: k<<<1, 1>>>(x), __shared__ int a;
#include <map>
#include <string>

#include "program.h"

#define SHARED(name) __shared__ int name[4]  // tex2D() is only named here

template <typename T, int N>
struct Pair {
    T values[N];
};

__device__ __constant__ float scale[2] = {1, 2}, shift;
static __device__ int calls;
extern __shared__ int of_file[];

__noinline__ __device__ int count() { return atomicAdd(&calls, 1); }

template <int N>
__global__ void shared(int* y) {
    __shared__ float a[3][N + 1], b;
    __shared__ Pair<int, 2> c[2];
    __shared__ struct {
        int a, b;
    } s, *p;
    SHARED(d);
    extern __shared__ __align__(16) volatile float4 dynamic[];
    a[2][N] = 1, b = 2, c[1].values[1] = 3, s.b = 4, p = &s, d[3] = 5, dynamic[0].w = 6, count();
    *y = a[2][N] + 10 * b + 100 * c[1].values[1] + 1000 * p->b + 10000 * d[3] + 100000 * dynamic[0].w;
}

__global__ void file(int* y) { of_file[1] = 7, *y = of_file[1] + scale[1] + shift; }

namespace a {
namespace b {
template <typename T, bool B>
__global__ void add(int* x, T by) {
    atomicAdd(x, B ? by : -by);
}
}  // namespace b
}  // namespace a

__global__ void add(int* x, int by) { atomicAdd(x, by); }
__global__ void add_if(int* x, int by, const int* no) { atomicAdd(x, no ? 1000 : by); }

using Kernel = void (*)(int*, int);
struct Entry {
    Kernel kernel;
};

int evaluated = 0;
Entry* entries(Entry* table) { return ++evaluated, table; }
__attribute__((__noinline__)) int half(int n) { return n / 2; }
void last(int* x) { return add<<<1, 1>>>(x, half(8)); }

int main() {
    const char* const text = "k<<<1, 1>>>(__shared__)";
    const char quote = '"';  // "
    EXPECT(text[1] == '<' && quote == 34);
    int n = 1, *y = on_gpu<int>(1), *x = zeros_on_gpu<int>(1);
    shared<4><<<1, 1, 64>>>(y);
    EXPECT(take(y, 1)[0] == 654321);
    const float one = 1;
    CUDA(cudaMemcpyToSymbol(shift, &one, sizeof one));
    y = on_gpu<int>(1);
    file<<<dim3(1, 1), half(3), 2 * sizeof(int), 0>>>(y);
    EXPECT(take(y, 1)[0] == 10);

    if (n < 2) add<<<n, (n > 3 ? n : 2)>>>(x, 1);
    add<<<1, 1>>>(x, 10);
    a::b::add<int, (2 > 1)><<<(n + 1) / 2, 1>>>(x, 100);
    add_if<<<1, 1>>>(x, 0, NULL);
    add_if<<<1, 1>>>(x, 0, 0);
    last(x);
    EXPECT(take(x, 1)[0] == 116);

    x = zeros_on_gpu<int>(1);
    Entry table[] = {{add}, {add}}, *const p = table;
    const std::map<std::string, Kernel> map = {{"add", add}};
    table[n].kernel<<<1, 1>>>(x, 1);
    (n ? table[0].kernel : add)<<<1, 1>>>(x, 10);
    p->kernel<<<1, 1>>>(x, 100);
    map.at("add")<<<1, 1>>>(x, 1000);
    entries(table)[1].kernel<<<1, 1>>>(x, 10000);
    EXPECT(take(x, 1)[0] == 11111 && evaluated == 1);
}
