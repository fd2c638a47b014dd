/* Counts primes: each rank every so-manyth number. Prints how many there are, and by how many ranks on how many hosts. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int is_prime(long n) {
    if (n < 2 || (n > 2 && n % 2 == 0))
        return 0;
    for (long by = 3; by * by <= n; by += 2)
        if (n % by == 0)
            return 0;
    return 1;
}

int main(int count, char **words) {
    long below = count > 1 ? atol(words[1]) : 100000, own = 0, all = 0;
    int rank, ranks, length, hosts = 0;
    char name[MPI_MAX_PROCESSOR_NAME] = "", *names = NULL;
    MPI_Init(&count, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Get_processor_name(name, &length);
    for (long n = rank; n < below; n += ranks)
        own += is_prime(n);
    MPI_Reduce(&own, &all, 1, MPI_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0)
        names = malloc((size_t)ranks * sizeof name);
    MPI_Gather(name, sizeof name, MPI_CHAR, names, sizeof name, MPI_CHAR, 0, MPI_COMM_WORLD);
    for (int one = 0; rank == 0 && one < ranks; one++) {
        int is_new = 1;
        for (int other = 0; other < one; other++)
            is_new &= strcmp(names + one * sizeof name, names + other * sizeof name) != 0;
        hosts += is_new;
    }
    if (rank == 0)
        printf("%ld primes\n%d ranks on %d hosts\n", all, ranks, hosts);
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Finalize();
    return 0;
}
