#include "program.h"

__managed__ int answers[3];

struct List {
    float* values;
    int size;
};

__global__ void scale(List* list) {
    const int i = threadIdx.x;
    if (i < list->size) list->values[i] *= 2;
    if (i < 3) answers[i] = 40 + i;
}

__global__ void rows(char* image, size_t pitch, int width, int height) {
    const int x = threadIdx.x, y = blockIdx.x;
    if (x < width && y < height) reinterpret_cast<float*>(image + y * pitch)[x] += y;
}

int main() {
    List* list;
    CUDA(cudaMallocManaged(&list, sizeof *list));
    list->size = 50;
    CUDA(cudaMallocManaged(&list->values, 50 * sizeof(float), cudaMemAttachGlobal));
    for (int i = 0; i < 50; ++i) list->values[i] = i;
    scale<<<1, 64>>>(list);
    CUDA(cudaDeviceSynchronize());
    for (int i = 0; i < 50; ++i) EXPECT(list->values[i] == 2 * i);
    EXPECT(answers[2] == 42);
    CUDA(cudaFree(list->values));
    CUDA(cudaFree(list));

    constexpr int width = 30, height = 9;
    std::vector<float> h = numbers(width * height), back(width * height);
    char* image;
    size_t pitch, row = width * sizeof(float);
    CUDA(cudaMallocPitch(&image, &pitch, row, height));
    CUDA(cudaMemcpy2D(image, pitch, h.data(), row, row, height, cudaMemcpyHostToDevice));
    rows<<<height, 32>>>(image, pitch, width, height);
    CUDA(cudaMemcpy2D(back.data(), row, image, pitch, row, height, cudaMemcpyDeviceToHost));
    for (int i = 0; i < width * height; ++i) EXPECT(back[i] == h[i] + i / width);
    CUDA(cudaFree(image));
}
