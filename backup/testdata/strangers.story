# Sessions that are refused: another host, another guest, an old generation, and
# one that would make a new image in place of the only one in sync.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> hello-of c web
    refuse: the log here names a the owner in generation 1, not c in generation 1
> hello-of a db
    refuse: this is the backup of "web", not of "db"
> hello 7
    refuse: the log here names a the owner in generation 1, not a in generation 7
> hello 1 9
    refuse: the log still names epoch 2 of image 0100000000000000 as in sync, and this primary cannot continue from it
> checkpoint 3
    commit
